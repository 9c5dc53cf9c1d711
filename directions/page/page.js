// Sends chosen or dropped files to our own route, and tells Gradio the token it answers with.
async function fgSend(zone, files) {
  const status = zone.querySelector("output"), most = Number(zone.dataset.most), tokens = [], remarks = [];
  for (const file of [...files].slice(0, most)) {
    if (file.size > Number(zone.dataset.limit)) { status.textContent = `${file.name} is too large`; return; }
    status.textContent = `reading ${file.name} …`;
    const route = `${zone.dataset.route}?name=${encodeURIComponent(file.name)}`;
    const answer = await fetch(route, { method: "POST", body: file }).catch(() => null);
    if (!answer) { status.textContent = "flowgrad does not answer: is it still running?"; return; }
    const [token, warning] = (await answer.text()).split("\n");
    if (!answer.ok) { status.textContent = token; return; }
    tokens.push(token);
    if (warning) remarks.push(`${file.name}: ${warning}`);
  }
  if (files.length > most && most > 1) remarks.push(`only the first ${most} were taken`);
  status.textContent = most > 1 ? [`${tokens.length} photos`, ...remarks].join("; ") : "";
  const box = document.querySelector(`#${zone.dataset.target} textarea, #${zone.dataset.target} input`);
  box.value = tokens.join(" ");
  box.dispatchEvent(new Event("input", { bubbles: true }));
}

const fgZone = event => event.target.closest ? event.target.closest(".fg-drop") : null;

document.addEventListener("change", event => {
  const zone = fgZone(event);
  if (zone && event.target.type === "file") { fgSend(zone, event.target.files); event.target.value = ""; }
});
document.addEventListener("dragover", event => { if (fgZone(event)) event.preventDefault(); });
document.addEventListener("drop", event => {
  const zone = fgZone(event);
  if (zone) { event.preventDefault(); fgSend(zone, event.dataTransfer.files); }
});
