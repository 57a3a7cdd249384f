"""Procedural scenes: images of composite objects with exact masks of objects and parts and unambiguous expressions."""

from scenes.expressions import RELATIONAL_KINDS, SceneObject
from scenes.options import SceneOptions
from scenes.scene import find_scene, scene, scenes

__all__ = ["RELATIONAL_KINDS", "SceneObject", "SceneOptions", "find_scene", "scene", "scenes"]
