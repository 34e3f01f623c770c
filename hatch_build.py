"""Build hook: the lock files are the only source of versions, also for ``pip install -e .``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

EXTRAS = {
    "objects": ["obstore"],
    "parquet": ["pyarrow"],
    "timestamps": ["rfc3161-client"],
}
"""What each extra brings beyond requirements.lock. The versions are those it is tested with: requirements-test.lock."""


def pins(lock: Path) -> list[str]:
    """The exact requirements (``name==version ; marker``) of a hashed lock file."""
    lines = lock.read_text(encoding="utf-8").splitlines()
    return [line.removesuffix("\\").strip() for line in lines if "==" in line and line[0].isalnum()]


class LockedDependencies(MetadataHookInterface):
    """Gives the wheel's metadata the versions of requirements.lock and requirements-test.lock."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by the build with the metadata to complete."""
        root = Path(self.root)
        core = pins(root / "requirements.lock")
        test = [pin for pin in pins(root / "requirements-test.lock") if pin not in core]
        metadata["dependencies"] = core
        metadata["optional-dependencies"] = {
            "test": test,
            **{extra: [pin for pin in test if pin.split("==")[0] in names] for extra, names in EXTRAS.items()},
        }
