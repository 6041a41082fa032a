package main

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// load sends the script through a follower, statement by statement and in its order.
// Half of its bytes in, it kills the leader while a statement is on its way; when three
// quarters are in, it starts the killed node again.
func (d *demo) load(list []statement) error {
	leader, err := d.leader()
	if err != nil {
		return err
	}
	via := d.nodes[slices.IndexFunc(d.nodes, func(p *process) bool { return p != leader })]
	note := ""
	if d.skipped > 0 {
		note = fmt.Sprintf(" (%d lines of BEGIN and COMMIT skipped: each statement is a transaction)", d.skipped)
	}
	d.say("three nodes run, %s leads; loading %s, %d statements, through %s%s", leader.flags.ID, d.name, len(list), via.flags.ID, note)
	began := time.Now()
	killAt, restartAt := milestones(list)
	var killed *process
	before := 0 // statements acknowledged before the kill
	for i, st := range list {
		var killing chan error
		if i == killAt {
			if killed, err = d.leader(); err != nil {
				return err
			}
			if killed == via {
				return fmt.Errorf("%s became the leader while loading, and the script's connection is there: run it again", via.flags.ID)
			}
			d.say("  %4d done: kill -9 %s, process %d, which leads", i, killed.flags.ID, killed.cmd.Process.Pid)
			before, killing = i, make(chan error, 1)
			time.AfterFunc(d.typical()/2, func() { killing <- killed.kill() })
		}
		if err := d.send(via, st); err != nil {
			return errors.Join(err, await(killing))
		}
		if err := await(killing); err != nil {
			return fmt.Errorf("kill %s: %w", killed.flags.ID, err)
		}
		if i == restartAt {
			if err := killed.start(); err != nil {
				return err
			}
			d.say("  %4d done: %s started again with the same flags", i+1, killed.flags.ID)
		}
	}
	for i := max(before, 1); i < len(d.acks); i++ {
		d.outage = max(d.outage, d.acks[i].Sub(d.acks[i-1]))
	}
	d.say("loaded in %.2f s: %d statements acknowledged, %d sent again, none of unknown outcome", time.Since(began).Seconds(), len(d.acks), d.again)
	return nil
}

func await(c chan error) error {
	if c == nil {
		return nil
	}
	return <-c
}

// milestones are the statements at which half and three quarters of the script's bytes
// have been reached.
func milestones(list []statement) (half, threeQuarters int) {
	total, sum := 0, 0
	for _, st := range list {
		total += len(st.sql)
	}
	half = -1
	for i, st := range list {
		sum += len(st.sql)
		if half < 0 && sum*2 >= total {
			half = i
		}
		if sum*4 >= total*3 && i > half {
			return half, i
		}
	}
	return half, len(list) - 1
}

// maxAgain bounds how often a statement is sent again.
const maxAgain = 5

// send has one statement acknowledged. The library itself sends a write again when a
// leader is lost; what it gives back is either certainly not applied, which is sent
// again here, or unknown, which nobody can answer for and which ends the run.
func (d *demo) send(via *process, st statement) error {
	began := time.Now()
	for try := 0; ; try++ {
		r, err := via.call("exec", st.sql)
		switch {
		case err != nil:
			return fmt.Errorf("line %d: outcome unknown: %s: %w", st.line, via.flags.ID, err)
		case r.Err == "":
			d.acks = append(d.acks, time.Now())
			d.took = append(d.took, time.Since(began))
			return nil
		case r.Kind == kindAgain && try < maxAgain:
			d.again++
		default:
			return fmt.Errorf("line %d: %s: %s\n  %s", st.line, r.Kind, r.Err, firstLine(st.sql))
		}
	}
}

// typical is the median time of a write.
func (d *demo) typical() time.Duration {
	if len(d.took) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(d.took))
	return sorted[len(sorted)/2]
}
