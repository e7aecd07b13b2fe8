"""The library behind the scripts. Imports go one way: scripts -> gradus -> model.py."""
