# SPDX-License-Identifier: Apache-2.0
"""
Makes the model known to the Auto classes of Transformers without importing them.

Transformers has no lazy registration: `AutoModel.register` needs the class, and importing it takes seconds. So this
module waits until Python has imported an Auto module of Transformers, and registers our classes right after. Since our
modeling file imports an Auto module itself, our modules are watched too: registration waits until they are complete.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder


def register_config(ours):
    from transformers import AutoConfig

    AutoConfig.register(ours.RTransformerConfig.model_type, ours.RTransformerConfig, exist_ok=True)


def register_models(ours):
    import transformers

    for name, model_class in ours.AUTO_CLASSES.items():
        if name != "AutoConfig":
            getattr(transformers, name).register(ours.RTransformerConfig, model_class, exist_ok=True)


def register_image_processor(ours):
    from transformers import AutoImageProcessor

    config = import_module(f"{__package__}.configuration_rtransformer").RTransformerConfig
    classes = {"pil": ours.RTransformerImageProcessor}
    AutoImageProcessor.register(config, image_processor_classes=classes, exist_ok=True)


# A module of Transformers, our module whose classes belong into its tables, and how they get there.
REGISTRATIONS = [
    ("transformers.models.auto.configuration_auto", f"{__package__}.configuration_rtransformer", register_config),
    ("transformers.models.auto.modeling_auto", f"{__package__}.modeling_rtransformer", register_models),
    (
        "transformers.models.auto.image_processing_auto",
        f"{__package__}.image_processing_rtransformer",
        register_image_processor,
    ),
]


class ImportWatch(MetaPathFinder):
    """Finds the modules of `REGISTRATIONS` as Python does, and registers our classes when one of them has run."""

    def __init__(self):
        self.complete = set()

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if not any(name in (theirs, ours) for theirs, ours, _ in REGISTRATIONS):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_then_register(module):
                run(module)
                self.register_after(name)

            spec.loader.exec_module = run_then_register
        return spec

    def register_after(self, name: str):
        self.complete.add(name)
        for theirs, ours, register in REGISTRATIONS:
            if name in (theirs, ours) and theirs in self.complete:
                under_way = ours in sys.modules and ours not in self.complete
                if not under_way:
                    register(import_module(ours))


def start():
    """Registers our classes with the Auto modules that are loaded, and with the others when they will be."""
    watch = ImportWatch()
    sys.meta_path.insert(0, watch)
    for theirs, _, _ in REGISTRATIONS:
        if theirs in sys.modules:
            watch.register_after(theirs)
