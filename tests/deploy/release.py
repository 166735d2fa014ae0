#!/usr/bin/env python3
"""Tests of `.ci/release/check.py` with invented repositories: it accepts versions that agree, and names each that does
not.

    tests/deploy/release.py
"""

import importlib.util
import tempfile
import unittest
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / ".ci/release/check.py"
SPEC = importlib.util.spec_from_file_location("check", SCRIPT)
check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check)

FILES = {
    "Cargo.toml": '[package]\nname = "blip-server"\nversion = "1.2.3"\n',
    "Cargo.lock": '[[package]]\nname = "other"\nversion = "9.0.0"\n[[package]]\nname = "blip-server"\nversion = "1.2.3"\n',
    "Dockerfile": "FROM x\nARG VERSION=1.2.3\n",
    "deploy/chart/Chart.yaml": 'name: blip-server\nversion: 0.7.0\nappVersion: "1.2.3"\n',
    "CHANGELOG.md": "# Changelog\n\n## [Unreleased]\n\n## [1.2.3] - 2026-12-01\n\n### Added\n\n- All.\n\n## [1.2.2] - 2026-11-01\n\n- Old.\n",
}


class Check(unittest.TestCase):
    def faults(self, tag: str = "v1.2.3", **changed: str) -> tuple[list[str], str]:
        """Checks the invented repository, with other texts for some files (`/` and `.` in names are written as `_`)."""
        with tempfile.TemporaryDirectory() as folder:
            for path, text in FILES.items():
                file = Path(folder, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(changed.get(path.replace("/", "_").replace(".", "_"), text))
            return check.disagreements(Path(folder), tag)

    def test_versions_that_agree_give_the_notes(self):
        self.assertEqual(self.faults(), ([], "### Added\n\n- All."))

    def test_every_place_that_differs_is_named(self):
        for name, text, place in [
            ("Cargo_toml", FILES["Cargo.toml"].replace("1.2.3", "1.2.4"), "Cargo.toml"),
            ("Cargo_lock", FILES["Cargo.lock"].replace("1.2.3", "1.2.4"), "Cargo.lock"),
            ("Dockerfile", "FROM x\n", "Dockerfile"),
            ("deploy_chart_Chart_yaml", "appVersion: 1.2.4 # new\n", "appVersion"),
            ("CHANGELOG_md", "## [1.2.3] - soon\n\n- All.\n", "CHANGELOG.md"),
            ("CHANGELOG_md", "## [1.2.3] - 2026-12-01\n\n## [1.2.2] - 2026-11-01\n\n- Old.\n", "CHANGELOG.md"),
        ]:
            with self.subTest(place=place):
                faults, _ = self.faults(**{name: text})
                self.assertEqual(len(faults), 1, faults)
                self.assertIn(place, faults[0])

    def test_a_tag_of_another_version_disagrees_with_all(self):
        self.assertEqual(len(self.faults("v1.2.4")[0]), 5)

    def test_only_versions_are_tags_of_releases(self):
        for tag in ["1.2.3", "v1.2", "v1.2.3+build", "latest"]:
            self.assertEqual(len(self.faults(tag)[0]), 1, tag)
        self.assertTrue(check.TAG.fullmatch("v1.2.3-rc.1"))


if __name__ == "__main__":
    unittest.main()
