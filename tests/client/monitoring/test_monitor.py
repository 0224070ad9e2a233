from pathlib import Path

from small_disk import small_disk

from fedpath.client.audit import AUDIT_FILE
from fedpath.client.monitoring.monitor import audit_trouble


def test_an_audit_log_that_cannot_be_written_to_is_told_before_anything_is_lost(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        assert audit_trouble(disk.path) is None  # nothing has left yet
        (disk.path / AUDIT_FILE).write_text("")
        assert audit_trouble(disk.path) is None
        disk.fill()
        assert audit_trouble(disk.path) == "audit.jsonl: its disk is full"
        disk.make_room()
        disk.remount("ro")
        assert audit_trouble(disk.path) == "audit.jsonl cannot be written to: Read-only file system"
        disk.remount("rw")
        assert audit_trouble(disk.path) is None
