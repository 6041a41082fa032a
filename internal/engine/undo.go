package engine

import (
	"fmt"
)

// How an epoch is undone, and run again as it was recorded.

// rebuild runs the epoch's finished units again after something ended its
// transaction (H5), and compares: a unit that computes something else now is not
// deterministic, and nothing of this epoch may be proposed. It reports success;
// otherwise the epoch was undone.
func (d *DB) rebuild(e *epoch) bool {
	e.rebuilt = true // once per epoch: the units that wait go into the next
	var err error
	if e.base != nil {
		if !d.restore(e.base) {
			return false
		}
		err = d.runInternal(d.saveAhead)
	} else if err = d.rollbackOpen(); err == nil {
		err = d.runInternal(d.begin)
	}
	if err != nil {
		d.cfg.Logger.Warn("epoch undone", "db", d.cfg.Name, "units", len(e.units), "err", err)
		return false
	}
	return d.repeatUnits(e)
}

// repeatUnits runs the units of an epoch as they were recorded. It reports success.
func (d *DB) repeatUnits(e *epoch) bool {
	for _, u := range e.units {
		if d.urgent.Load() && !e.proposed {
			return false
		}
		if u.failed {
			continue
		}
		if err := d.repeat(u); err != nil {
			d.cfg.Logger.Warn("epoch undone", "db", d.cfg.Name, "units", len(e.units), "err", err)
			return false
		}
	}
	return true
}

// repeat runs a unit as it was recorded and compares the outcome.
func (d *DB) repeat(u *Unit) error {
	if err := d.runInternal(d.save); err != nil {
		return err
	}
	d.x.schema, d.x.deferred = false, false
	if u.session {
		d.w.SetNow(u.time)
		for i := range u.entry.Statements {
			if err := d.repeatStatement(u.entry.Statements[i], u.sums[i], u.seed, i); err != nil {
				return err
			}
		}
		return d.endUnit()
	}
	rows, err := d.replay(&u.entry)
	if err != nil {
		return err
	}
	if want := u.Result.Result.Rows; want != nil && (rows == nil || string(rows.Data) != string(want.Data)) {
		return fmt.Errorf("unit %v returned other rows when it was run again", u.Req.ID)
	}
	return d.endUnit()
}

// undoEpoch rolls an epoch back that cannot be applied and puts its units back in
// front of the queue, and rest behind them.
func (d *DB) undoEpoch(e *epoch, rest []*Unit) {
	stood := len(e.units) > 0 || e.base != nil
	d.abandon(e)
	if stood {
		d.abortSession(AbortLeader, nil) // it stood on them
	}
	again := make([]*Unit, 0, len(e.units)+len(rest))
	for _, u := range e.units {
		if u.session {
			u.Err = ErrNotLeading // its client is told that it was undone
			d.finish(u)
			continue
		}
		if u.retries++; u.retries > maxRetries {
			u.Err = fmt.Errorf("gave up after running it %d times: %w", u.retries, ErrNotLeading)
			d.finish(u)
			continue
		}
		again = append(again, u)
	}
	d.requeue(append(again, rest...))
}

// abandon rolls an epoch back, and what stands on it. Its units are still the caller's to
// answer.
func (d *DB) abandon(e *epoch) {
	if e == d.ahead {
		d.ahead = nil
		d.comeDown(e)
		return
	}
	d.void()
	d.epoch = nil
	d.proposed.Store(0)
	if err := d.rollbackOpen(); err != nil {
		d.halt(err)
	}
}

// rollbackOpen ends the open transaction, if there is one, without a trace.
func (d *DB) rollbackOpen() error {
	if !d.w.Autocommit() {
		if err := d.runInternal(d.rollback); err != nil {
			return err
		}
	}
	err := d.forgetUndone(d.touched)
	d.touched = false
	return err
}
