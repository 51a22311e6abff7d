"""Tiny."""
from zoo.models import NAMES, build
from zoo.inputs import Prepared, inputs
