"""Tiny random models of the Hugging Face vision-language families, and their real processors."""
