"""The product: global semantic directions, the files and banks they live in, and what is done with them."""
