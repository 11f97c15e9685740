"""One self-contained HTML page about a study: `page.write_report` fills page.html.j2 with the sections of this folder."""
