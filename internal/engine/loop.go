package engine

import (
	"fmt"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

type itemKind int

const (
	itemEntry itemKind = iota
	itemLead
	itemStepDown
	itemDrain
	itemProposal // how a proposal ended without its entry coming back
)

// logItem is what the node tells the owner, in order.
type logItem struct {
	kind    itemKind
	mark    wire.Mark
	data    []byte
	drained chan error // one slot
	epoch   uint64
	err     error
}

// dropped answers an item that the owner will not see.
func (it *logItem) dropped() {
	if it.drained != nil {
		it.drained <- ErrClosed
	}
}

// haltError keeps the reason of a halt.
type haltError struct {
	name string
	err  error
}

func (h *haltError) Error() string {
	return fmt.Sprintf("database %q has stopped on this node: %v", h.name, h.err)
}

func (h *haltError) Unwrap() []error { return []error{ErrHalted, h.err} }

// enqueue reports whether the owner will see the item, if nothing stops it before.
func (d *DB) enqueue(it logItem) bool {
	for {
		d.mu.Lock()
		if d.closing || d.halted.Load() != nil {
			d.mu.Unlock()
			it.dropped()
			return false
		}
		if it.kind != itemEntry || d.logBytes == 0 || d.logBytes+len(it.data) <= d.cfg.MaxLogQueue {
			break
		}
		room := d.logRoom
		d.mu.Unlock()
		select {
		case <-room:
		case <-d.stopped:
			return false
		case <-d.cfg.Stop:
			d.Stop() // it must not take the next entry either
			return false
		}
	}
	d.log = append(d.log, it)
	d.logBytes += len(it.data)
	if it.kind == itemEntry {
		d.delivered.Store(it.mark.Index)
	}
	if it.kind == itemStepDown || it.kind == itemEntry && !d.isOwn(it.data) {
		d.urgent.Store(true) // under mu, as the owner clears it when it takes the log
	}
	d.mu.Unlock()
	d.signal()
	return true
}

// isOwn reports whether an entry is the epoch this process proposed and waits for.
func (d *DB) isOwn(data []byte) bool {
	_, proposer, epoch, _, err := wire.EntryOwner(data)
	return err == nil && proposer == d.cfg.Proposer && epoch == d.proposed.Load()
}

// own is the owner's goroutine. The log comes first: it decides the epoch that is
// out, and an entry of another leader means that what is open here is void.
func (d *DB) own() {
	defer close(d.stopped)
	for {
		d.mu.Lock()
		closing, items := d.closing, d.log
		d.log, d.logBytes = nil, 0
		if len(items) > 0 {
			close(d.logRoom)
			d.logRoom = make(chan struct{})
		}
		if !closing {
			d.urgent.Store(false)
		}
		d.mu.Unlock()
		switch {
		case len(items) > 0 && !closing:
			d.consume(items)
			continue
		case closing:
			d.shut(items)
			return
		case d.halted.Load() != nil && d.epoch != nil:
			// What would have decided it is not taken in any more.
			d.discard(nil)
			continue
		}
		if d.epoch == nil && d.workBetweenEpochs() || d.runAhead() {
			continue
		}
		if d.holder == nil {
			<-d.wake
			continue
		}
		if d.endParked(d.holder, time.Now()) {
			continue
		}
		d.sleep(d.sessionEnd(d.holder))
		d.failWaiting(time.Now())
	}
}

// workBetweenEpochs runs what needs the connection outside a transaction. It
// reports whether it did anything.
func (d *DB) workBetweenEpochs() bool {
	d.mu.Lock()
	control := d.control
	d.control = nil
	some := len(d.units) > 0 || len(d.sessions)+len(d.returning) > 0 || d.holder != nil || d.ahead != nil
	d.mu.Unlock()
	for _, fn := range control {
		fn()
	}
	switch {
	case !some:
		return len(control) > 0
	case d.halted.Load() != nil:
		d.failSessions(d.Err())
		d.failAll(d.takeUnits(), d.Err())
	case d.leading.Load() == 0 && d.logWaits():
		// It may say that this node leads, since before they came.
	case d.leading.Load() == 0:
		d.failSessions(ErrNotLeading)
		d.failAll(d.takeUnits(), ErrNotLeading)
	case d.ahead != nil && d.holder != nil:
		d.runEpoch(nil)
	case d.ahead != nil:
		d.runEpoch(d.nextUnits())
	case d.holder == nil:
		d.grant()
		if units := d.nextUnits(); len(units) > 0 || d.sessionsWait() {
			d.runEpoch(units)
		}
	case d.passParked.Load():
		d.runEpoch(d.takeUnits())
	case d.sessionNeedsEpoch(d.holder, time.Now()):
		d.runEpoch(nil)
	default:
		return len(control) > 0
	}
	return true
}

func (d *DB) failAll(units []*Unit, err error) {
	for _, u := range units {
		if u.take() {
			d.fail(u, err)
		}
	}
}

// takeUnits takes what waits now.
func (d *DB) takeUnits() []*Unit {
	d.mu.Lock()
	defer d.mu.Unlock()
	units := d.units
	d.units, d.queued = nil, 0
	return units
}

// nextUnits takes what waits now. Units and sessions alternate: after what waited has run,
// a session that waits comes before more, so neither keeps the other out.
func (d *DB) nextUnits() []*Unit {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.sessionTurn && len(d.returning) > 0 {
		return nil
	}
	units := d.units
	d.units, d.queued = nil, 0
	d.sessionTurn = len(units) > 0
	return units
}

// requeue puts units back in front, in order. The owner may have ended: what a majority has
// been asked about is answered on a goroutine of its own.
func (d *DB) requeue(units []*Unit) {
	if len(units) == 0 {
		return
	}
	d.mu.Lock()
	if d.closing {
		d.mu.Unlock()
		d.failAll(units, ErrClosed)
		return
	}
	d.units = append(append(make([]*Unit, 0, len(units)+len(d.units)), units...), d.units...)
	for _, u := range units {
		d.queued += u.Req.Size()
	}
	d.mu.Unlock()
	d.signal()
}

// halt stops this replica: it must not skip an entry, so it takes none any more.
func (d *DB) halt(err error) {
	if !d.halted.CompareAndSwap(nil, &haltError{d.cfg.Name, err}) {
		return
	}
	d.leading.Store(0)
	d.cfg.Logger.Error("replica stopped", "db", d.cfg.Name, "mark", d.Mark().String(), "err", err)
	d.publish(d.Mark())
	d.signal() // the owner may not know
	if d.cfg.Halt != nil {
		d.cfg.Halt(d.Err())
	}
}

// shut answers everything that waits. An epoch that was proposed may still win.
func (d *DB) shut(items []logItem) {
	for _, it := range items {
		it.dropped()
	}
	if e := d.epoch; e != nil {
		d.abandon(e)
		d.answer(e, ErrUnknown)
	}
	d.failSessions(ErrClosed)
	d.mu.Lock()
	units, control := d.units, d.control
	d.units, d.control, d.queued = nil, nil, 0
	d.mu.Unlock()
	d.failAll(units, ErrClosed)
	for _, fn := range control {
		fn()
	}
}
