"""Planning imports no heavy package, so that the command line starts quickly."""

import json
import pkgutil
import subprocess
import sys

from retain import sweeps

HEAVY = {"torch", "lightning", "transformers", "datasets", "ray", "pandas", "scipy", "matplotlib", "numpy"}
OTHER_FOLDERS = {"retain.datamodules", "retain.lightning_modules", "retain.launchers", "retain.results"}


def test_sweeps_imports_no_heavy_package_and_no_other_folder() -> None:
    modules = [module.name for module in pkgutil.walk_packages(sweeps.__path__, "retain.sweeps.")]
    assert "retain.sweeps.tree.tree" in modules
    code = f"import json, sys, {', '.join(modules)}; print(json.dumps(sorted(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert not set(json.loads(loaded)) & (HEAVY | OTHER_FOLDERS)
