"""What a page is made of: markup, charts, tables, numbers in words, and the style sheet."""
