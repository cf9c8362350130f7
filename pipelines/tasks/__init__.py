"""Tasks as data: records, a template or a promptsource template, a verbalizer or free text, and mixtures of them."""
