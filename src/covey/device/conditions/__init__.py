"""Whether the device may train now: idle, charging, unmetered, with battery, storage and memory to spare."""
