"""The enrolment authority: a small program of its own that certifies devices, so that no server can play them all."""
