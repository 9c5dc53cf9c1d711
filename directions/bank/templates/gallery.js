// Filters the cards by words and by a tag; texts are compared, never inserted.
const box = document.getElementById("search"), said = document.getElementById("said");
const cards = [...document.querySelectorAll(".fg-card")], tags = [...document.querySelectorAll("[data-tag]")];
function show() {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const tag = tags.find(each => each.getAttribute("aria-pressed") === "true")?.dataset.tag;
  let count = 0;
  for (const card of cards) {
    const fits = words.every(word => card.dataset.words.includes(word));
    card.hidden = !(fits && (!tag || card.dataset.tags.split(",").includes(tag)));
    count += !card.hidden;
  }
  said.textContent = `${count} of ${cards.length} directions`;
}
box.addEventListener("input", show);
for (const each of tags) each.addEventListener("click", () => {
  const pressed = each.getAttribute("aria-pressed") === "true";
  tags.forEach(other => other.setAttribute("aria-pressed", "false"));
  each.setAttribute("aria-pressed", String(!pressed));
  show();
});
show();
