"""Tiny."""
from zoo import shim
shim.declare_operators()
from zoo.models import NAMES, build
from zoo.inputs import Prepared, inputs
