"""Files that change together: what is written, what is left alone, and what is refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from meshmint.agent.outputs import AtomicSet, Content, OutputError, OutputInUse, Placement

OPEN = Placement(mode=0o755)


def files(**texts: str) -> dict[str, Content]:
    return {name.replace("_", "."): Content(text.encode()) for name, text in texts.items()}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a path belong to somebody whom the agent does not trust."""
    if os.geteuid() == 0:
        os.chown(path, 65534, -1, follow_symlinks=False)
    else:
        # Who is not root cannot give anything away, but can be somebody else.
        monkeypatch.setattr(os, "geteuid", lambda: 4711)


def snapshot(directory: Path) -> dict[str, tuple[int, int, float]]:
    return {
        str(path): (found.st_ino, found.st_mode, found.st_mtime)
        for path in sorted(directory.rglob("*"))
        for found in [path.lstat()]
    }


def test_what_was_written_is_read_and_seen_under_its_names(tmp_path: Path) -> None:
    tls = AtomicSet(tmp_path / "a" / "tls", OPEN)

    assert tls.write(files(key_pem="K", cert_pem="C"))

    assert tls.read() == {"key.pem": b"K", "cert.pem": b"C"}
    assert (tls.directory / "key.pem").read_bytes() == b"K"
    assert mode_of(tls.directory) == 0o755
    assert mode_of(tls.directory / "key.pem") == 0o600


def test_a_set_that_was_never_written_reads_as_empty(tmp_path: Path) -> None:
    assert AtomicSet(tmp_path / "none").read() == {}
    assert not (tmp_path / "none").exists()
    assert AtomicSet(tmp_path).read() == {}


def test_nothing_is_written_when_all_is_as_it_should_be(tmp_path: Path) -> None:
    tls = AtomicSet(tmp_path / "tls")
    tls.write(files(key_pem="K", cert_pem="C"))
    before = snapshot(tls.directory)
    ours = Path(tls.directory / "..meshmint-lock")
    before.pop(str(ours))

    assert not tls.write(files(key_pem="K", cert_pem="C"))
    after = snapshot(tls.directory)
    after.pop(str(ours))
    assert after == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda directory: (directory / "key.pem").write_bytes(b"other"),
        lambda directory: (directory / "key.pem").chmod(0o644),
        lambda directory: (directory / "key.pem").resolve().unlink(),
        lambda directory: (directory / "key.pem").unlink(),
        lambda directory: (directory / "..data" / "more").write_bytes(b""),
        lambda directory: (directory / "..data").unlink(),
        lambda directory: (directory / "..data").resolve().chmod(0o755),
        lambda directory: [
            (directory / "..data" / "key.pem").unlink(),
            (directory / "..data" / "key.pem").symlink_to("/etc/passwd"),
        ],
    ],
    ids=["content", "mode", "file gone", "name gone", "more", "..data gone", "folder", "a link"],
)
def test_what_somebody_has_changed_is_put_right(tmp_path: Path, spoil: object) -> None:
    tls = AtomicSet(tmp_path / "tls")
    wanted = files(key_pem="K", cert_pem="C")
    tls.write(wanted)
    assert callable(spoil)
    spoil(tls.directory)

    assert tls.write(wanted)

    assert tls.read() == {"key.pem": b"K", "cert.pem": b"C"}
    assert (tls.directory / "key.pem").read_bytes() == b"K"
    assert mode_of(tls.directory / "key.pem") == 0o600
    assert not tls.write(wanted)


def test_a_name_that_is_no_longer_wanted_goes_and_foreign_files_stay(tmp_path: Path) -> None:
    tls = AtomicSet(tmp_path / "tls")
    tls.write(files(key_pem="K", old_pem="O"))
    foreign = tls.directory / "readme"
    foreign.write_text("by hand")
    (tls.directory / "link").symlink_to("..data/key.pem")

    assert tls.write(files(key_pem="K"))

    assert not (tls.directory / "old.pem").is_symlink()
    assert foreign.read_text() == "by hand"
    assert (tls.directory / "link").is_symlink()


def test_who_has_opened_a_version_reads_on_after_a_change(tmp_path: Path) -> None:
    tls = AtomicSet(tmp_path / "tls")
    tls.write(files(key_pem="K1", cert_pem="C1"))
    folder = os.open(tls.directory / "..data", os.O_RDONLY | os.O_DIRECTORY)

    tls.write(files(key_pem="K2", cert_pem="C2"))
    assert not tls.write(files(key_pem="K2", cert_pem="C2"))

    with open(os.open("cert.pem", os.O_RDONLY, dir_fd=folder), "rb") as file:
        assert file.read() == b"C1"
    os.close(folder)


def test_versions_that_were_replaced_long_ago_are_removed(tmp_path: Path) -> None:
    tls = AtomicSet(tmp_path / "tls")
    tls.write(files(key_pem="K1"))
    old = (tls.directory / "..data").resolve()
    tls.write(files(key_pem="K2"))
    assert old.exists()
    os.utime(old, (1, 1))

    tls.write(files(key_pem="K2"))

    assert not old.exists()


def test_however_often_it_changes_old_versions_are_few(tmp_path: Path) -> None:
    tls = AtomicSet(tmp_path / "tls")
    for number in range(30):
        tls.write(files(key_pem=str(number)))
    assert len(list(tls.directory.glob("..meshmint-*"))) <= 12


def test_a_foreign_file_with_one_of_our_names_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("precious")

    with pytest.raises(OutputError, match=r"key\.pem: is there already.*replace: true"):
        AtomicSet(tmp_path).write(files(key_pem="K", cert_pem="C"))

    assert (tmp_path / "key.pem").read_text() == "precious"
    assert not (tmp_path / "cert.pem").exists()


def test_a_foreign_file_is_replaced_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("precious")
    (tmp_path / "key.pem").symlink_to("elsewhere")
    (tmp_path / "cert.pem").write_text("old")

    assert AtomicSet(tmp_path, replace=True).write(files(key_pem="K", cert_pem="C"))

    assert (tmp_path / "key.pem").read_bytes() == b"K"
    assert (tmp_path / "cert.pem").read_bytes() == b"C"
    assert (tmp_path / "elsewhere").read_text() == "precious"


def test_a_directory_with_one_of_our_names_is_refused_whatever_is_asked_for(
    tmp_path: Path,
) -> None:
    (tmp_path / "key.pem").mkdir()
    with pytest.raises(OutputError, match="is a directory: move it away"):
        AtomicSet(tmp_path, replace=True).write(files(key_pem="K"))


def test_a_volume_of_kubernetes_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "..2026_11_25").mkdir()
    (tmp_path / "..data").symlink_to("..2026_11_25")
    with pytest.raises(OutputError, match="not made by the agent"):
        AtomicSet(tmp_path).write(files(key_pem="K"))
    assert os.readlink(tmp_path / "..data") == "..2026_11_25"


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../key", "a/b", "/etc/passwd", ".hidden", "..data", "a\n", "a\0b", "ä"]
)
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="is no name for a file"):
        AtomicSet(tmp_path / "tls").write({name: Content(b"")})


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (shared := tmp_path / "shared").mkdir()
    for mode in (0o777, 0o775, 0o1777):
        shared.chmod(mode)
        with pytest.raises(OutputError, match=r"others may write to it .*chmod go-w"):
            AtomicSet(shared).write(files(key_pem="K"))
        assert not any(shared.iterdir())

    assert AtomicSet(shared, Placement(others_may_write=True)).write(files(key_pem="K"))


def test_a_directory_above_that_others_may_write_to_must_be_sticky(tmp_path: Path) -> None:
    (above := tmp_path / "above").mkdir()
    above.chmod(0o777)
    with pytest.raises(OutputError, match="above: others may write to it"):
        AtomicSet(above / "tls").write(files(key_pem="K"))
    above.chmod(0o1777)
    assert AtomicSet(above / "tls").write(files(key_pem="K"))


def test_a_directory_of_somebody_else_is_refused_unless_he_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (theirs := tmp_path / "theirs").mkdir()
    give_away(theirs, monkeypatch)
    with pytest.raises(OutputError, match=r"belongs to user .* name that user as the owner"):
        AtomicSet(theirs / "tls").write(files(key_pem="K"))

    owners = frozenset({theirs.stat().st_uid})
    if os.geteuid() == 0:
        assert AtomicSet(theirs / "tls", Placement(owners=owners)).write(files(key_pem="K"))


def test_a_link_above_is_followed_if_we_made_it_and_refused_if_others_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real").mkdir(0o755)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "whole").symlink_to(tmp_path / "real" / ".." / "link")
    assert AtomicSet(tmp_path / "whole" / "tls").write(files(key_pem="K"))
    assert (tmp_path / "real" / "tls" / "key.pem").read_bytes() == b"K"

    (tmp_path / "theirs").symlink_to("/etc")
    give_away(tmp_path / "theirs", monkeypatch)
    with pytest.raises(OutputError, match=r"symbolic link of user|belongs to user"):
        AtomicSet(tmp_path / "theirs" / "tls").write(files(key_pem="K"))


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OutputError, match="too many symbolic links"):
        AtomicSet(tmp_path / "a" / "tls").write(files(key_pem="K"))


def test_a_file_on_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file: cannot open.*move it away"):
        AtomicSet(tmp_path / "file" / "tls").write(files(key_pem="K"))


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (victim := tmp_path / "victim").write_text("precious")
    (tls := tmp_path / "tls").mkdir()
    (tls / "..meshmint-lock").symlink_to(victim)
    with pytest.raises(OutputError, match="cannot lock"):
        AtomicSet(tls).write(files(key_pem="K"))
    assert victim.read_text() == "precious"


def test_the_set_may_be_on_another_file_system_than_the_temporary_files(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    assert shared.stat().st_dev != tmp_path.stat().st_dev, "two file systems are needed"
    name = f"meshmint-test-{os.getpid()}-{threading.get_ident()}"
    (tmp_path / "out").symlink_to(shared / name)
    tls = AtomicSet(tmp_path / "out")
    try:
        assert tls.write(files(key_pem="K"))
        assert not tls.write(files(key_pem="K"))
        assert (shared / name / "key.pem").read_bytes() == b"K"
    finally:
        subprocess.run(["rm", "-r", shared / name], check=True)


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    first, second = AtomicSet(tmp_path / "tls"), AtomicSet(tmp_path / "tls")
    code = (
        "import sys\n"
        "from meshmint.agent.outputs import AtomicSet\n"
        "with AtomicSet(sys.argv[1]).lock():\n"
        "    print('locked', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "tls"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(OutputInUse, match=f"process {other.pid} writes here"):
            first.write(files(key_pem="K"))
        other.kill()
    with first.lock():
        assert first.write(files(key_pem="K"))
        with pytest.raises(OutputInUse, match="two outputs of this agent"):
            second.write(files(key_pem="K"))
    assert not second.write(files(key_pem="K"))


def test_a_lock_that_was_removed_with_its_directory_is_taken_anew(tmp_path: Path) -> None:
    first, second = AtomicSet(tmp_path / "tls"), AtomicSet(tmp_path / "tls")
    with first.lock():
        first.write(files(key_pem="K"))
        shutil.rmtree(tmp_path / "tls")
        assert first.write(files(key_pem="K"))
        shutil.rmtree(tmp_path / "tls")
        with second.lock(), pytest.raises(OutputInUse):
            first.write(files(key_pem="K"))


def test_a_limit_of_the_process_leaves_what_was_there(tmp_path: Path) -> None:
    tls = AtomicSet(tmp_path / "tls")
    tls.write(files(key_pem="K"))
    code = (
        "import sys\n"
        "from meshmint.agent.outputs import *\n"
        "try:\n"
        "    AtomicSet(sys.argv[1]).write({'key.pem': Content(bytes(8192))})\n"
        "except OutputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tls.directory],
        capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )  # fmt: skip

    assert "key.pem: cannot write" in done.stdout
    assert "ulimit -f" in done.stdout
    assert tls.read() == {"key.pem": b"K"}
    assert not list(tls.directory.glob("..meshmint-new-*"))


def test_a_pipe_in_place_of_a_file_does_not_hold_up_the_writer(tmp_path: Path) -> None:
    tls = AtomicSet(tmp_path / "tls")
    tls.write(files(key_pem="K"))
    os.mkfifo(tls.directory / "..data" / "fifo")
    (tls.directory / "..data" / "key.pem").unlink()
    os.mkfifo(tls.directory / "..data" / "key.pem")
    assert tls.write(files(key_pem="K"))
    os.mkfifo(tmp_path / "cert.pem")
    assert AtomicSet(tmp_path, replace=True).write(files(cert_pem="C"))


WATCH = """
import json, os, stat, sys
from meshmint.agent.outputs import AtomicSet, Content
directory, widest = sys.argv[1], {}

def look(event, arguments):
    if event not in ("open", "os.chmod", "os.chown", "os.mkdir", "os.rename", "os.symlink", "end"):
        return
    for folder, names, files in os.walk(directory):
        for name in [".", *files]:
            found = os.lstat(os.path.join(folder, name))
            if not stat.S_ISLNK(found.st_mode):
                kind = name if name != "." else "version" * ("..meshmint" in folder)
                widest[kind] = widest.get(kind, 0) | stat.S_IMODE(found.st_mode)

os.umask(int(sys.argv[2], 8))
sys.addaudithook(look)
files = {"key.pem": Content(b"K", 0o400), "cert.pem": Content(b"C", 0o640)}
for number in range(2):
    AtomicSet(directory).write(files | {"number": Content(str(number).encode(), 0o444)})
    look("end", ())
print(json.dumps(widest))
"""


@pytest.mark.parametrize("umask", ["000", "022", "077"])
def test_no_file_is_ever_wider_than_asked_for_whatever_the_umask(
    tmp_path: Path, umask: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCH, tmp_path / "tls", umask],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    widest = json.loads(done.stdout)

    # In every step that the audit hook saw, and in the end.
    assert widest["key.pem"] == 0o400
    assert widest["cert.pem"] == 0o640
    assert widest["number"] == 0o444
    assert widest["version"] == 0o700
    assert widest["..meshmint-lock"] == 0o600


def test_an_owner_is_given_or_the_refusal_says_what_it_takes(tmp_path: Path) -> None:
    tls = AtomicSet(tmp_path / "tls", OPEN)
    wanted = {"key.pem": Content(b"K", 0o640, owner=65534, group=65534)}
    if os.geteuid() == 0:
        assert tls.write(wanted)
        found = (tls.directory / "key.pem").stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (65534, 65534, 0o640)
        assert not tls.write(wanted)
    else:
        with pytest.raises(OutputError, match=r"only root|user namespace"):
            tls.write(wanted)
        assert tls.read() == {}


def test_content_does_not_show_its_data() -> None:
    assert "secret" not in repr(Content(b"secret"))
