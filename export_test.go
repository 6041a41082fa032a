package colmena

// Partition cuts a node off from those for which f is true; nil heals.
func (n *Node) Partition(f func(nodeID string) bool) { n.net.Partition(f) }

// SetTrailingLogs sets how many entries before a snapshot are kept.
func SetTrailingLogs(c *Config, entries uint64) { c.trailingLogs = entries }
