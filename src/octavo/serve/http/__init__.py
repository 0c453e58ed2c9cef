"""HTTP itself: protocol, transport, keys, bodies, ids, one exchange. Knows no route and no engine."""
