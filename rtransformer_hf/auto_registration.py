# SPDX-License-Identifier: Apache-2.0
"""
Registers the model with the Auto classes of Transformers without importing them.

Transformers has no lazy registration: `AutoModel.register` needs the class, and importing it takes seconds. So this
module waits until something has imported an Auto class, and registers our classes right after.
"""

import sys
import threading
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder

AUTO_CONFIG = "transformers.models.auto.configuration_auto"  # every Auto class imports it


def start():
    """Registers our classes now if an Auto class is loaded, or else as soon as one is."""
    if AUTO_CONFIG in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, ImportWatch())


def register():
    """Registers the configuration, the models, the feature extractor and the image processor."""
    import transformers
    from transformers.models.auto.image_processing_auto import AutoImageProcessor  # Transformers 5.16 hides it above

    from .configuration_rtransformer import RTransformerConfig
    from .feature_extraction_rtransformer import RTransformerFeatureExtractor
    from .image_processing_rtransformer import RTransformerImageProcessor
    from .modeling_rtransformer import AUTO_CLASSES

    for name, registered_class in AUTO_CLASSES.items():
        key = RTransformerConfig.model_type if name == "AutoConfig" else RTransformerConfig
        getattr(transformers, name).register(key, registered_class, exist_ok=True)
    transformers.AutoFeatureExtractor.register(RTransformerConfig, RTransformerFeatureExtractor, exist_ok=True)
    AutoImageProcessor.register(
        RTransformerConfig, image_processor_classes={"pil": RTransformerImageProcessor}, exist_ok=True
    )


class ImportWatch(threading.local, MetaPathFinder):
    """
    Finds the modules of Transformers and of this package as Python does, and calls `register` once an Auto class is
    loaded. Transformers' modules import each other in circles, so it waits until none of them is half imported.
    """

    packages = ("transformers", __package__)
    depth = 0  # modules of these packages that this thread is importing

    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        if name.partition(".")[0] not in self.packages:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_then_register(module):
                self.depth += 1
                try:
                    run(module)
                finally:
                    self.depth -= 1
                if self.depth == 0 and AUTO_CONFIG in sys.modules and self in sys.meta_path:
                    sys.meta_path.remove(self)
                    register()

            spec.loader.exec_module = run_then_register
        return spec
