"""Install the four rooms as ``fedpath.core``, ``fedpath.client``, ``fedpath.server`` and ``fedpath.cli``.

setuptools cannot find packages below a name that no folder carries, so the mapping is spelled out here; everything else
is in pyproject.toml.
"""

from setuptools import find_packages, setup

ROOMS = ("core", "client", "server", "cli")

setup(
    packages=[f"fedpath.{room}" for room in ROOMS]
    + [f"fedpath.{room}.{package}" for room in ROOMS for package in find_packages(room)],
    package_dir={f"fedpath.{room}": room for room in ROOMS},
    package_data={f"fedpath.{room}": ["py.typed"] for room in ROOMS}
    | {
        "fedpath.core.page": ["static/*"],
        "fedpath.core.recipes": ["*.toml"],
        "fedpath.core.report": ["report.html.j2", "report.css"],
        "fedpath.client.page": ["static/*"],
        "fedpath.client.slides": ["encode_report.html.j2", "encode_report.css"],
        "fedpath.server.page": ["static/*"],
    },
)
