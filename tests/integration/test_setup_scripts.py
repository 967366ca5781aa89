"""The scripts under `make`: a Python that is new enough, and packages of the system."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


class Machine:
    """A PATH of its own: a few real tools, and programs that only write down their calls."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "bin"
        self.directory.mkdir()
        self.calls_file = directory / "calls"
        for tool in ("sh", "env", "dirname", "cat", "rm", "touch"):
            found = shutil.which(tool)
            assert found is not None
            (self.directory / tool).symlink_to(found)

    def program(self, name: str, body: str = "") -> None:
        """A program that writes its call down and then runs the body."""
        path = self.directory / name
        path.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.calls_file}\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, script: str, *arguments: str, **environment: str) -> tuple[int, str]:
        """Runs a script of deploy/ on this machine."""
        done = subprocess.run(
            [DEPLOY / script, *arguments],
            env={"PATH": str(self.directory), **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    @property
    def calls(self) -> list[str]:
        """What was called so far."""
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []

    def installs(self, *programs: str) -> str:
        """A body that makes programs appear."""
        return "\n".join(
            f'echo "#!/bin/sh" > {self.directory / name}; '
            f"{shutil.which('chmod')} +x {self.directory / name}"
            for name in programs
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def _uid(machine: Machine, uid: int) -> None:
    (machine.directory / "id").write_text(f"#!/bin/sh\necho {uid}\n")
    (machine.directory / "id").chmod(0o755)


def test_what_is_there_is_not_installed(machine: Machine) -> None:
    machine.program("openssl")
    machine.program("apt-get")

    assert machine.run("packages.sh", "openssl") == (0, "")
    assert machine.calls == []


def test_root_installs_without_sudo_and_without_questions(machine: Machine) -> None:
    _uid(machine, 0)
    machine.program("apt-get", machine.installs("certtool"))

    status, said = machine.run("packages.sh", "gnutls-bin")

    assert status == 0, said
    (call,) = machine.calls
    assert call.startswith("apt-get")
    assert "install -y" in call
    assert call.endswith(" gnutls-bin")


def test_others_install_through_sudo(machine: Machine) -> None:
    _uid(machine, 1000)
    machine.program("sudo", '[ "$1" = -n ] && shift\nexec "$@"')
    (machine.directory / "true").symlink_to(shutil.which("true") or "")
    machine.program("dnf", machine.installs("certtool"))

    status, said = machine.run("packages.sh", "gnutls-bin")

    assert status == 0, said
    assert machine.calls[-2:] == [
        "sudo -n dnf install -y -q gnutls-utils",
        "dnf install -y -q gnutls-utils",
    ]


def test_lists_that_are_out_of_date_are_renewed_once(machine: Machine) -> None:
    _uid(machine, 0)
    renewed = machine.directory / "renewed"
    machine.program(
        "apt-get",
        f'case "$*" in *update*) touch {renewed}; exit 0 ;; esac\n'
        f"[ -e {renewed} ] || exit 100\n" + machine.installs("certtool"),
    )

    status, said = machine.run("packages.sh", "gnutls-bin")

    assert status == 0, said
    assert ["update" in call for call in machine.calls] == [False, True, False]


@pytest.mark.parametrize("manager", ["apt-get", "dnf", "zypper", "apk", "pacman"])
def test_who_may_not_install_is_told_the_command(machine: Machine, manager: str) -> None:
    _uid(machine, 1000)
    machine.program(manager)

    status, said = machine.run("packages.sh", "opensc")

    assert status == 1
    assert "opensc" in said
    assert f"{manager} install opensc" in said
    assert machine.calls == []


def test_a_machine_without_a_package_manager_is_told_what_is_missing(machine: Machine) -> None:
    status, said = machine.run("packages.sh", "openssl", "gnutls-bin")

    assert status == 1
    assert "Missing: openssl gnutls-bin" in said


def test_a_package_that_brings_nothing_is_not_taken_for_success(machine: Machine) -> None:
    _uid(machine, 0)
    machine.program("apk")

    status, said = machine.run("packages.sh", "gnutls-bin")

    assert status == 1
    assert "gnutls-bin" in said


def test_a_python_that_is_too_old_is_passed_over(machine: Machine, tmp_path: Path) -> None:
    machine.program("python3", "exit 1")
    machine.program("python3.12", f'[ "$1" = -m ] || exec {sys.executable} "$@"')

    status, said = machine.run("python.sh", str(tmp_path / "venv"))

    assert status == 0, said
    assert machine.calls[-1] == f"python3.12 -m venv {tmp_path / 'venv'}"


def test_without_a_new_enough_python_it_says_which_is_needed(
    machine: Machine, tmp_path: Path
) -> None:
    machine.program("python3", "exit 1")

    status, said = machine.run("python.sh", str(tmp_path / "venv"))

    assert status == 1
    assert "3.11 or newer" in said
    assert not (tmp_path / "venv").exists()


def test_scripts_are_plain_posix_shell() -> None:
    for script in ("packages.sh", "python.sh"):
        text = (DEPLOY / script).read_text()
        assert text.startswith("#!/bin/sh\n")
        assert os.access(DEPLOY / script, os.X_OK)
        assert subprocess.run(["sh", "-n", DEPLOY / script], check=False).returncode == 0
