from fedpath.core.monitoring.health import Health


def test_what_follows_from_a_check_that_fails() -> None:
    says: dict[str, str | None] = dict.fromkeys(("loop", "coordinator", "registry"))
    health = Health()
    health.add("loop", "vital", lambda: says["loop"])
    health.add("coordinator", "ready", lambda: says["coordinator"])
    health.add("registry", "minor", lambda: says["registry"])

    def look(**wrong: str) -> tuple[str, bool, bool]:
        says.update(dict.fromkeys(says) | wrong)
        state = health.look()
        return state.status, state.alive, state.ready

    assert look() == ("ok", True, True)
    assert look(registry="is away") == ("degraded", True, True)
    assert look(coordinator="is away") == ("degraded", True, False)
    assert look(loop="stands still") == ("failing", False, False)
    assert health.look().record() == {
        "status": "failing",
        "ready": False,
        "checks": {
            "loop": {"ok": False, "says": "stands still"},
            "coordinator": {"ok": True, "says": ""},
            "registry": {"ok": True, "says": ""},
        },
    }
