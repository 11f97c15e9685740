"""Keep the results of studies in docs/evidence: `python -m tools.evidence STORE STUDY... [PATH=VALUE]...`.

Writes the verdicts, the loss table, the figures and the page of `retain report` into docs/evidence/<study>.
Several studies are judged together and share a folder.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"


def keep(store: Path, words: list[str]) -> Path:
    """Write the report of studies from their store, and copy it; returns the folder. words: the studies, and any overrides."""
    verb = [sys.executable, "-m", "retain.launchers.cli.app"]
    options = ["--store", str(store), "--json"]
    document = json.loads(
        subprocess.run([*verb, "report", *words, *options], check=True, stdout=subprocess.PIPE).stdout
    )
    folder = EVIDENCE / document["study"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    studies, overrides = [word for word in words if "=" not in word], [word for word in words if "=" in word]
    tables = {study: "losses.csv" if len(studies) == 1 else f"{study}.csv" for study in studies}
    for study, name in tables.items():
        table = [study, *overrides, *options, "--csv", str(folder / name)]
        subprocess.run([*verb, "results", *table], check=True, stdout=subprocess.DEVNULL)
    for path in [Path(document["report"])] + [Path(figure["png"]) for figure in document["figures"]]:
        shutil.copy(path, folder / path.name)
    quoted = "".join(f" '{override}'" for override in overrides)
    commands = [*(f"run {study}{quoted}" for study in studies), f"report {' '.join(studies)}{quoted}"]
    text = summary(document, list(tables.values()), commands)
    probed = store / "studies" / document["study"] / "predictors.json"
    if probed.exists():
        shutil.copy(probed, folder / probed.name)
        text += correlation_table(json.loads(probed.read_text()))
    (folder / "README.md").write_text(text)
    return folder


def summary(document: dict[str, Any], tables: list[str], commands: list[str]) -> str:
    """The results in Markdown: the command, the verdicts, the figures."""
    lines = [f"# {document['study']}", "", *(f"    retain {command}" for command in commands), ""]
    finished = document["trials"] - document["missing"]
    lines += [
        f"{finished} of {document['trials']} trials. {', '.join(f'[{name}]({name})' for name in tables)}, "
        "[the whole report](report.html).",
        "",
    ]
    if document["verdicts"]:
        lines += ["| claim | outcome | in words | p | p, adjusted for all |", "|---|---|---|---|---|"]
    for one in document["verdicts"]:
        values = " | ".join("-" if one[name] is None else f"{one[name]:.2g}" for name in ("p", "adjusted_p"))
        lines.append(f"| {one['claim']} | {one['outcome']} | {one['sentence']} | {values} |")
    for figure in document["figures"]:
        lines += ["", f"![{figure['name']}]({Path(figure['png']).name})", "", figure["caption"]]
    return "\n".join(lines) + "\n"


def correlation_table(probed: dict[str, Any]) -> str:
    """How well each predictor of `retain probe` ranks the true L_ret: over all trials, in each pipeline and at each rate."""
    lines = [
        "",
        f"`retain probe --share {probed['share']:g}`: rank correlation with the true L_ret (95%: bootstrap).",
        "",
    ]
    lines += ["| within | predictor | correlation | 95% | trials | θ_post |", "|---|---|---|---|---|---|"]
    for one in probed["correlations"]:
        if len(one["within"]) <= 1 and one["correlation"] is not None:
            within = " ".join(f"{axis} {value}" for axis, value in one["within"].items()) or "all trials"
            between = "-" if one["low"] is None else f"{one['low']:+.2f} to {one['high']:+.2f}"
            name = probed["predictors"][one["predictor"]]
            lines.append(
                f"| {within} | {name} | {one['correlation']:+.2f} | {between} | {one['trials']} | {one['starts']} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(keep(Path(sys.argv[1]), sys.argv[2:]))
