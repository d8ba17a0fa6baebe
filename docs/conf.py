"""Settings of the documentation site; ``make docs`` builds it."""

from __future__ import annotations

import builtins
import typing
from importlib import import_module
from inspect import Parameter, Signature
from types import ModuleType
from typing import Any

from sphinx.ext import napoleon
from sphinx.ext.napoleon.docstring import GoogleDocstring

project = "mpochain"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "mpochain"
html_show_copyright = False

myst_heading_anchors = 3

autodoc_member_order = "groupwise"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature shows the types
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

# The inventories of other projects cannot be fetched where the site is built without a network, so references to them
# stay plain text. One line for each project, and one for type variables, which have no page.
nitpick_ignore_regex = [
    ("py:.*", r"torch(\..*)?"),
    ("py:.*", r"(numpy|np)(\..*)?"),
    ("py:.*", r"pydantic\..*"),
    ("py:.*", r"transformers\..*"),
    ("py:class", "Path"),  # of an annotation that Sphinx leaves as it is written
    ("py:class", r"mpochain\.train\.loop\.Batch"),  # a type variable
    ("py:.*", r"(abc|collections\.abc|contextlib|enum|logging|pathlib|typing)\..*"),
]


def _object(name: str) -> Any:
    """The object that a dotted name imports, or None."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value: Any = import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for attribute in parts[length:]:
            value = getattr(value, attribute, None)
        return value
    return None


def _named(value: Any) -> bool:
    """Whether an object has an identity of its own, which a number or a string has not; a table is a dict or tuple."""
    return callable(value) or isinstance(value, ModuleType | dict) or (isinstance(value, tuple) and bool(value))


def _attributes(value: Any) -> set[str]:
    """Names of the attributes of a class, annotated ones without a value included."""
    bases = getattr(value, "__mro__", ())
    return {*dir(value), *(name for base in bases for name in getattr(base, "__annotations__", {}))}


# The documented name of each documented object, by identity; filled when the first reference is resolved.
_documented: dict[int, str] = {}


def _resolve_other_name(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Link an object by any name that imports it.

    ``mpochain.MPOLinear``, ``mpochain.nn.MPOLinear`` and ``mpochain.nn.linear.MPOLinear`` are one class with one page.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target:
        return None
    domain = env.get_domain("py")
    if not _documented:
        for name, entry in domain.objects.items():
            if not entry.aliased and _named(_object(name)):
                _documented[id(_object(name))] = name
    names, member = [".".join(filter(None, (node.get("py:module"), target))), target], ""
    if node.get("reftype") in ("attr", "meth"):
        owner, _, member = (target if "." in target else f"{node.get('py:class')}.{target}").rpartition(".")
        names = [name for name in (f"{node.get('py:module')}.{owner}", owner) if member in _attributes(_object(name))]
    for name in names:
        documented = _documented.get(id(_object(name))) if _named(_object(name)) else None
        if documented is not None:
            # Attributes are listed in the docstring of their class, which is as near as a link gets.
            inner = f"{documented}.{member}"
            found = inner if inner in domain.objects else documented
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", found, node, contnode)
    return None


def _leave_builtins(app: Any, doctree: Any) -> None:
    """Make plain text of types such as ``bytes``, which would be linked to any attribute of that name."""
    from docutils.nodes import Text
    from sphinx.addnodes import pending_xref

    for node in list(doctree.findall(pending_xref)):
        if node.get("reftype") == "class" and isinstance(vars(builtins).get(node.get("reftarget")), type):
            node.replace_self(Text(node["reftarget"]))


def _settings_signature(
    app: Any, what: str, name: str, value: Any, options: Any, signature: str, returns: str
) -> tuple[str, str | None] | None:
    """The signature of settings, or of a method by its settings: plain types, without the constraints of the fields."""
    from sphinx.util.inspect import stringify_signature

    if what != "class":
        return None
    value = getattr(value, "Settings", value)
    if not hasattr(value, "model_fields"):
        # Defaults that a dataclass makes anew are no Python that can be parsed.
        return (signature.replace("<factory>", "..."), returns) if signature else None
    hints = typing.get_type_hints(value)
    parameters = [
        Parameter(
            field,
            Parameter.KEYWORD_ONLY,
            annotation=hints[field],
            default=Parameter.empty if info.is_required() else info.get_default(call_default_factory=True),
        )
        for field, info in value.model_fields.items()
    ]
    return stringify_signature(Signature(parameters), unqualified_typehints=True), None


def _describe_settings(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Append the descriptions of the fields of settings to their docstring."""
    if what == "class":
        fields = getattr(value, "model_fields", {})
        described = [f":ivar {field}: {info.description}" for field, info in fields.items() if info.description]
        lines += ["", *described, ""] if described else []


def _skip_settings_machinery(app: Any, what: str, name: str, value: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what pydantic adds to a class."""
    return True if name == "model_config" else None


class _Prose(GoogleDocstring):
    """Docstrings of properties are prose: a colon in their first line does not end a type."""

    def _consume_inline_attribute(self) -> tuple[str, list[str]]:
        return "", type(self)(self._consume_to_end(), self._config).lines()


# Napoleon offers no setting for it, and its extension uses the class by this name.
napoleon.GoogleDocstring = _Prose


def setup(app: Any) -> None:
    """Register what the pages need beyond the extensions."""
    app.connect("doctree-read", _leave_builtins)
    app.connect("missing-reference", _resolve_other_name)
    app.connect("autodoc-process-signature", _settings_signature)
    app.connect("autodoc-process-docstring", _describe_settings)
    app.connect("autodoc-skip-member", _skip_settings_machinery)
