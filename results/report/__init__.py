"""One self-contained HTML page about a study: `page.write_report` fills web/page.html.j2 with the sections of this folder."""
