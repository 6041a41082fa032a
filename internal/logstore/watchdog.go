package logstore

import (
	"sync"
	"time"
)

// watchdog reports writes that take too long. It has no goroutine of its own: a timer for each write, which as a rule is stopped in time.
type watchdog struct {
	report func(time.Duration) // nil: off
	after  time.Duration

	mu   sync.Mutex
	late int // writes reported and not ended; guarded by mu, under which report is called so that its calls come in order
}

func newWatchdog(report func(time.Duration), after time.Duration) *watchdog {
	if after < 0 {
		report = nil
	}
	return &watchdog{report: report, after: after}
}

// begin watches a write until the function it returns is called.
func (w *watchdog) begin() (end func()) {
	if w.report == nil {
		return func() {}
	}
	start := time.Now()
	ended, reported := false, false // guarded by w.mu
	timer := time.AfterFunc(w.after, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if ended {
			return
		}
		reported = true
		w.late++
		w.report(time.Since(start))
	})
	return func() {
		timer.Stop()
		w.mu.Lock()
		defer w.mu.Unlock()
		ended = true
		if !reported {
			return
		}
		if w.late--; w.late == 0 {
			w.report(0)
		}
	}
}
