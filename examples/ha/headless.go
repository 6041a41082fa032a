package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"
)

// headless is a run without a page.
type headless struct {
	mu       sync.Mutex // for lines to stay whole
	out      io.Writer
	duration time.Duration
	chaos    bool
	seed     uint64
	began    time.Time
}

func (h *headless) say(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fmt.Fprintf(h.out, "%6.1f s  "+format+"\n", append([]any{time.Since(h.began).Seconds()}, args...)...)
}

// runHeadless writes for a while, with faults if that is asked for, and then tells whether
// every node holds every acknowledged write once.
func runHeadless(ctx context.Context, s *supervisor, h *headless) error {
	h.began = time.Now()
	if err := s.waitWell(recoverTimeout); err != nil {
		return err
	}
	before, err := s.rowsNow()
	if err != nil {
		return err
	}
	client := newClient(s, fmt.Sprintf("run%d", s.began))
	interrupt := ctx.Done()
	ctx, cancel := context.WithTimeout(ctx, h.duration)
	defer cancel()
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		client.run(ctx)
	}()
	end, _ := ctx.Deadline()
	c := &chaos{s: s, record: client.record, until: end, interrupt: interrupt, rng: rand.New(rand.NewPCG(h.seed, 0)), say: h.say, worst: map[faultKind]time.Duration{}}
	if h.chaos {
		h.say("%d nodes run; faults begin, of seed %d", len(s.nodes), h.seed)
		err = c.run(ctx)
	} else {
		h.say("%d nodes run; nothing is done to them", len(s.nodes))
	}
	if err != nil {
		cancel()
	}
	<-wrote
	select {
	case <-interrupt:
		return errors.Join(errors.New("interrupted before the end"), err)
	default:
	}
	return errors.Join(err, h.judge(s, client, before, c))
}

// rowsNow returns the rows that the log has before this run: of every node, since what any
// node has applied stays.
func (s *supervisor) rowsNow() ([]line, error) {
	all := map[int64]line{}
	for _, p := range s.nodes {
		var c content
		err := until(recoverTimeout, "the tables", func() (err error) {
			c, err = s.contentOf(p)
			return err
		})
		if err != nil {
			return nil, err
		}
		for _, l := range c.Rows {
			all[l.Seq] = l
		}
	}
	return slices.Collect(maps.Values(all)), nil
}

// convergeTimeout bounds how long the nodes may take to hold the same after the last write.
const convergeTimeout = 60 * time.Second

func (h *headless) judge(s *supervisor, client *client, before []line, c *chaos) error {
	s.network.healAll()
	var held []content
	var ids []string
	converged := until(convergeTimeout, "equal", func() error {
		if err := s.well(); err != nil {
			return err
		}
		var err error
		if held, ids, err = s.holdings(); err != nil {
			return err
		}
		for i, one := range held {
			if one.Sum == "" || one.Sum != held[0].Sum {
				return fmt.Errorf("%s holds %d rows with checksum %q, %s %d with %q", ids[i], len(one.Rows), one.Sum, ids[0], len(held[0].Rows), held[0].Sum)
			}
		}
		return nil
	})
	if converged != nil {
		held, ids, _ = s.holdings() // who does not answer is named by the report
	}
	v := judge(client.record.told, before, held, ids)
	h.report(s, v, held, ids, c)
	return errors.Join(converged, s.crashed(), v.err(), h.refused(v))
}

// holdings returns what each node holds that answers, and its ID.
func (s *supervisor) holdings() (held []content, ids []string, err error) {
	var errs []error
	for _, p := range s.nodes {
		c, err := s.contentOf(p)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		held, ids = append(held, c), append(ids, p.flags.ID)
	}
	return held, ids, errors.Join(errs...)
}

func (h *headless) report(s *supervisor, v verdict, held []content, ids []string, c *chaos) {
	fmt.Fprintf(h.out, "\nwrites acknowledged  %d\nunknown              %d, of which %d are in the log\ngiven up             %d\n", v.Written, v.Unknown, v.UnknownWritten, v.NotApplied)
	for _, p := range s.nodes {
		if i := slices.Index(ids, p.flags.ID); i >= 0 {
			fmt.Fprintf(h.out, "%-20s %d rows, checksum %s\n", ids[i], len(held[i].Rows), held[i].Sum)
		} else {
			fmt.Fprintf(h.out, "%-20s did not answer\n", p.flags.ID)
		}
	}
	if len(held) == 0 {
		fmt.Fprintf(h.out, "lost and doubled     not known\n")
	} else {
		fmt.Fprintf(h.out, "lost                 %d\ndoubled              %d\n", len(v.Lost), len(v.Doubled))
	}
	if !h.chaos {
		return
	}
	fmt.Fprintf(h.out, "\nlongest outage       leader    follower  learner\n")
	for _, f := range faults {
		fmt.Fprintf(h.out, "%-20s", f.name)
		for _, role := range []string{"leader", "follower", roleLearner} {
			cell := "-"
			if d, ok := c.worst[faultKind{f.name, role}]; ok {
				cell = fmt.Sprintf("%.2f s", d.Seconds())
			}
			fmt.Fprintf(h.out, " %-9s", cell)
		}
		fmt.Fprintln(h.out)
	}
	fmt.Fprintln(h.out)
}

// refused is for writes that did not come about without a reason.
func (h *headless) refused(v verdict) error {
	switch {
	case v.Written == 0:
		return errors.New("no write was acknowledged")
	case !h.chaos && v.Unknown+v.NotApplied > 0:
		return fmt.Errorf("%d writes were given up and of %d the outcome is unknown, though nothing was done to the nodes", v.NotApplied, v.Unknown)
	}
	return nil
}

// err names what is not as it was promised, and some examples.
func (v verdict) err() error {
	var errs []error
	for _, bad := range []struct {
		what string
		list []string
	}{
		{"acknowledged writes are not on every node", v.Lost}, {"acknowledged rows are not as they were written", v.Altered}, {"writes happened twice", v.Doubled},
		{"writes happened of which the library said that they were not applied", v.Ghosts}, {"rows were written by nobody", v.Strange}, {"nodes differ from the first", v.Different},
	} {
		if n := len(bad.list); n > 0 {
			errs = append(errs, fmt.Errorf("%d %s: %s", n, bad.what, strings.Join(bad.list[:min(n, 10)], " ")))
		}
	}
	return errors.Join(errs...)
}

// crashed names nodes that ended without having been told to.
func (s *supervisor) crashed() error {
	var errs []error
	for _, p := range s.nodes {
		if n := p.crashes(); n > 0 {
			errs = append(errs, fmt.Errorf("%s ended %d times by itself: its log %s tells why", p.flags.ID, n, p.logFile()))
		}
	}
	return errors.Join(errs...)
}
