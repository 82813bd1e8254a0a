"""One server for most tests: it starts once, as a user's does."""

import pytest
from live_server import IMAGES, LiveServer


@pytest.fixture(scope="session")
def slides(tmp_path_factory):
    """A folder that the server may read, beside one that it may not."""
    folder = tmp_path_factory.mktemp("allowed")
    (folder.parent / "forbidden").mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def live(tmp_path_factory, slides):
    """A server with the bundled model."""
    state = tmp_path_factory.mktemp("served") / "state"
    home = {"PATHOSAM_HOME": str(state.with_name("home"))}
    server = LiveServer(state, roots=(IMAGES, slides), environment=home)
    yield server
    server.end()


@pytest.fixture(scope="session")
def large(slides):
    """An image of tissue that takes many tiles."""
    from live_server import IHC
    from PIL import Image

    tissue = Image.open(IHC).convert("RGB")
    whole = Image.new("RGB", (3000, 3000))
    for x in range(0, 3000, tissue.width):
        for y in range(0, 3000, tissue.height):
            whole.paste(tissue, (x, y))
    path = slides / "large.png"
    whole.save(path, compress_level=1)
    return path
