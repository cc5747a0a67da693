"""What holds for all tests: a slow machine is no reason to fail; speed is what ``make bench`` is for."""

from hypothesis import HealthCheck, settings

settings.register_profile("covey", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("covey")
