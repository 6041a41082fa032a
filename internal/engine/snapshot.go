package engine

// Begin pins the reader to the present state until Release: every query of it sees the
// same. The write-ahead log cannot be started over meanwhile.
func (r *Reader) Begin() error {
	r.x.policy.trusted = true
	if err := r.conn.Exec("BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1"); err != nil {
		return r.wrap(err)
	}
	r.pinned = true
	return nil
}

func (r *Reader) end() {
	if r.pinned {
		r.x.policy.trusted = true
		_ = r.conn.Exec("ROLLBACK")
		r.pinned = false
	}
}
