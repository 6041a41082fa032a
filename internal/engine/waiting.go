package engine

import (
	"context"
	"slices"
	"time"
)

// What waits for a session, and for how long a session may keep it waiting.

// waitLook is how often it is looked whether somebody has waited for a session too long.
const waitLook = 10 * time.Millisecond

// sessionNeedsEpoch reports whether there is something to do for a parked session, or for
// others because it has ended.
func (d *DB) sessionNeedsEpoch(s *Session, now time.Time) bool {
	return d.endParked(s, now) || d.hasAsked(s)
}

// endParked ends a parked session whose client has gone or is late, and reports it.
func (d *DB) endParked(s *Session, now time.Time) bool {
	reason := d.late(s, d.hasAsked(s), now)
	if s.gone.Load() {
		reason = AbortGone
	}
	if reason != 0 {
		d.abortSession(reason, nil)
	}
	return reason != 0
}

func (d *DB) hasAsked(s *Session) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(s.asked) > 0
}

// late tells why a session that was idle, or open, for too long must end; else 0.
func (d *DB) late(s *Session, asked bool, now time.Time) AbortReason {
	switch {
	case d.cfg.MaxSessionTime > 0 && now.Sub(s.started) > d.cfg.MaxSessionTime:
		return AbortTime
	case !asked && d.cfg.MaxSessionIdle > 0 && now.Sub(s.touched) > d.cfg.MaxSessionIdle:
		return AbortIdle
	}
	return 0
}

// thinkGrace is how long a client may take to ask for the next thing while finished units
// wait, if its session can work ahead of them. A client in this process takes less.
const thinkGrace = 50 * time.Microsecond

// quick reports whether the client has asked within thinkGrace when it asked last.
func (s *Session) quick() bool { return time.Duration(s.thought.Load()) <= thinkGrace }

// keepsWaiting reports whether what ran ahead, and has waited for a round trip, would wait
// for the session's client or for its work to be repeated.
func (d *DB) keepsWaiting(e *epoch, s *Session) bool {
	return e.carried && (!s.quick() || s.cost > aheadCost)
}

// serveUntil is when a session whose client has been quiet for a while must be looked at
// again.
func (d *DB) serveUntil(e *epoch, s *Session, quiet time.Time) time.Time {
	until := d.sessionEnd(s)
	if d.finishedWait(e) {
		until = earlier(until, e.first.Add(cutAfter))
		if d.goesAhead(e, s) && s.quick() {
			until = earlier(until, quiet.Add(thinkGrace))
		} else if d.goesAhead(e, s) {
			until = quiet
		}
	}
	return until
}

// finishedWait reports whether units have finished that are to be proposed.
func (d *DB) finishedWait(e *epoch) bool { return len(e.units) > 0 && e.base == nil }

// sessionEnd is when a session must end if nothing happens, or when those who wait for it
// must be looked at; zero never.
func (d *DB) sessionEnd(s *Session) (until time.Time) {
	if d.cfg.MaxSessionIdle > 0 && !d.hasAsked(s) {
		until = s.touched.Add(d.cfg.MaxSessionIdle)
	}
	if d.cfg.MaxSessionTime > 0 {
		until = earlier(until, s.started.Add(d.cfg.MaxSessionTime))
	}
	d.mu.Lock()
	waiting := len(d.units)+len(d.returning) > 0
	d.mu.Unlock()
	if waiting {
		until = earlier(until, time.Now().Add(waitLook))
	}
	return until
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// sleep waits for something to be queued, until a moment; zero for ever.
func (d *DB) sleep(until time.Time) {
	if until.IsZero() {
		<-d.wake
		return
	}
	left := time.Until(until)
	if left <= 0 {
		return
	}
	d.timer.Reset(left + time.Microsecond)
	select {
	case <-d.wake:
		d.timer.Stop()
	case <-d.timer.C:
	}
}

// failWaiting ends the wait of units, and of sessions that need the writer, which have
// waited for a session for too long.
func (d *DB) failWaiting(now time.Time) {
	if d.holder == nil {
		return
	}
	tooLong := func(since time.Time) bool { return d.cfg.MaxWait > 0 && now.Sub(since) > d.cfg.MaxWait }
	var late, expired, canceled []*Unit
	var asked []*sessionRequest
	d.mu.Lock()
	d.units = slices.DeleteFunc(d.units, func(u *Unit) bool {
		switch {
		case u.canceled.Load():
			canceled = append(canceled, u)
		case tooLong(u.since):
			late = append(late, u)
		case !u.deadline.IsZero() && now.After(u.deadline):
			expired = append(expired, u)
		default:
			return false
		}
		d.queued -= u.Req.Size()
		return true
	})
	d.returning = slices.DeleteFunc(d.returning, func(s *Session) bool {
		if len(s.asked) == 0 || !tooLong(s.since) {
			return false
		}
		// Its statement has not run; the transaction goes on.
		for _, r := range s.asked {
			r.res.State = s.state
			asked = append(asked, r)
		}
		s.asked = nil
		s.shelveLocked()
		return true
	})
	d.mu.Unlock()
	d.failAll(canceled, ErrCanceled)
	if len(late)+len(expired)+len(asked) == 0 {
		return
	}
	d.failAll(expired, &AbortedError{Reason: AbortWait, Holder: d.holderText(), Cause: context.DeadlineExceeded})
	err := &AbortedError{Reason: AbortWait, Holder: d.holderText()}
	d.failAll(late, err)
	for _, r := range asked {
		r.reply <- StepResult{State: r.res.State, Err: err}
	}
}
