"""Places that tests read from."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"  # reference vectors and data; tests that need them are skipped where they are not there
