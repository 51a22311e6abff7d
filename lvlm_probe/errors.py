"""Every exception that this package raises on purpose.

One tree, so that one ``except`` can catch it all; each leaf also derives from the built-in exception that fits::

    LvlmProbeError
    ├── InputError (ValueError)          what the user handed in cannot be used
    │   ├── ImageError                   not an image, or an empty one
    │   ├── PromptError                  no text, or image places and images that differ in number
    │   ├── AnswerError                  an answer of zero tokens
    │   └── TargetError                  a target outside the answer, or of an unknown kind
    ├── ModelError (OSError)             no model of that name can be loaded
    ├── AdapterError                     the model's family is unknown, or is not built as its adapter says
    ├── LayoutError (ValueError)         token spans that overlap, or leave the sequence
    ├── CaptureError (RuntimeError)      a site was never reached, or got no gradient
    ├── RecipeError (ValueError)         an unknown recipe, or an option it does not take
    ├── TraceError                       what the recipe needs was not recorded
    │   ├── TraceFormatError             not a trace, or truncated, or changed after it was written
    │   ├── SchemaError                  written by another version of the format
    │   └── OutputError (OSError)        a file that cannot be written or read
    └── MissingExtraError (ImportError)  an optional dependency is not installed

A message states the fact, the values, and the cure. What still can be used, but for less, is a warning:
:class:`UnmappedImageWarning`, :class:`IncompleteWarning`.
"""

__all__ = [
    "AdapterError",
    "AnswerError",
    "CaptureError",
    "ImageError",
    "IncompleteWarning",
    "InputError",
    "LayoutError",
    "LvlmProbeError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "PromptError",
    "RecipeError",
    "SchemaError",
    "TargetError",
    "TraceError",
    "TraceFormatError",
    "UnmappedImageWarning",
]


class LvlmProbeError(Exception):
    """Base of every exception raised on purpose."""


class InputError(LvlmProbeError, ValueError):
    """What the user handed in cannot be used."""


class ImageError(InputError):
    """Not an image, or an empty one."""


class PromptError(InputError):
    """A prompt without text, or one whose image places do not match the images."""


class AnswerError(InputError):
    """An answer of zero tokens."""


class TargetError(InputError):
    """A target outside the answer, or of an unknown kind."""


class ModelError(LvlmProbeError, OSError):
    """No model of that name can be loaded."""


class AdapterError(LvlmProbeError):
    """The model's family is unknown, or the model is not built as its adapter says."""


class LayoutError(LvlmProbeError, ValueError):
    """Token spans that overlap, leave the sequence, or do not fit their image."""


class CaptureError(LvlmProbeError, RuntimeError):
    """A site was never reached in the forward pass, or got no gradient in the backward pass."""


class RecipeError(LvlmProbeError, ValueError):
    """An unknown recipe, or an option that the recipe does not take."""


class TraceError(LvlmProbeError):
    """A trace lacks what was asked of it."""


class TraceFormatError(TraceError):
    """A file that is no trace, was cut short, or was changed after it was written."""


class SchemaError(TraceError):
    """A trace written by another version of the format."""


class OutputError(TraceError, OSError):
    """A file or folder that cannot be written or read."""


class MissingExtraError(LvlmProbeError, ImportError):
    """An optional dependency is not installed; the message names the extra."""


class UnmappedImageWarning(UserWarning):
    """Which positions show an image cannot be told: tokens can be explained, pixels cannot."""


class IncompleteWarning(UserWarning):
    """Scores that should add up to the target's change do not, within the steps that were allowed."""
