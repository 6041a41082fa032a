package membership

// Record is a whole line of the replicated members table.
type Record struct {
	ID, Incarnation, Addr string
	Voter                 bool   // it votes, or will when it has caught up
	Engine                uint64 // fingerprint of its SQLite and processor
	FormatMin, FormatMax  uint16 // format versions it reads
	Functions             string // what it adds to SQL, in the engine's form
}
