"""The scripts as files: one for each entry of the menu, alike in how they find their classes."""

import re

import groovy_tools
import pytest

SCRIPTS = sorted(groovy_tools.SCRIPTS.glob("*.groovy"))
STUBS = [path for path in SCRIPTS if path.name != "load.groovy"]


def actions():
    return (groovy_tools.SCRIPTS / "pathosam" / "Actions.groovy").read_text("ascii")


def test_every_entry_of_the_menu_has_a_script_and_a_label():
    order = re.search(r"ORDER = \[(.*?)\]", actions(), re.DOTALL)[1]
    entries = set(re.findall(r"'(\w+)'", order))
    assert entries | {"segment_batch", "install_menu"} == {path.stem for path in STUBS}
    labels = re.search(r"LABELS = \[(.*?)\]\.", actions(), re.DOTALL)[1]
    assert set(re.findall(r"^ +(\w+):", labels, re.MULTILINE)) == entries


@pytest.mark.parametrize("path", STUBS, ids=lambda path: path.stem)
def test_scripts_find_their_classes_alike(path):
    def body(file):
        text = file.read_text("ascii")
        code = text[text.index("import java.util.prefs") :]
        code = re.sub(r"Preferences\.userRoot\(\)\.node\('pathosam-qupath'\)\.put.*\n", "", code)
        return code.replace(f"call('{file.stem}')", "call(NAME)")

    assert body(path) == body(STUBS[0])
    assert "call(NAME)" in body(path)


@pytest.mark.parametrize(
    "path", sorted(groovy_tools.SCRIPTS.rglob("*.groovy")), ids=lambda path: path.stem
)
def test_scripts_are_ascii(path):
    """QuPath 0.5 runs on Java 17, which reads them in the system's encoding."""
    path.read_text("ascii")


@pytest.mark.parametrize(
    "path", sorted(groovy_tools.SCRIPTS.rglob("*.groovy")), ids=lambda path: path.stem
)
def test_scripts_ask_maps_for_properties_by_get(path):
    """Groovy 5 (QuPath 0.7) takes ``map.properties`` for the properties of the map itself."""
    assert not re.search(r"(?<!System)\??\.properties\b|\['properties'\]", path.read_text("ascii"))


def test_load_compiles_the_classes_of_its_own_folder(groovy, tmp_path):
    check = tmp_path / "check.groovy"
    check.write_text(
        "evaluate(new File(args[0], 'load.groovy'))\n"
        "Map.Entry first = System.properties.get('pathosam.classes')\n"
        "println 'written: ' + first.value.loadClass('pathosam.Json').write([1, 'a'])\n"
        "evaluate(new File(args[0], 'load.groovy'))\n"
        "println 'once: ' + first.is(System.properties.get('pathosam.classes'))\n"
    )
    words = ["groovy.ui.GroovyMain", check, groovy_tools.SCRIPTS]
    found = groovy_tools.results(groovy_tools.java(*words, class_path=[groovy_tools.groovy_jar()]))
    assert found == {"written": [1, "a"], "once": True}
