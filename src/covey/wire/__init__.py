"""Messages, framing and versions. ``SPEC.md`` beside this file is the protocol for an implementer in any language."""
