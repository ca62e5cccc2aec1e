"""Markup of the page. Whatever comes from elsewhere is escaped where an element is made, and nowhere else."""
