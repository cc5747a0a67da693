"""Who and what is let in: attestation, rate limits, deadlines on requests. The server and the authority share it."""
