package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"
)

const (
	// nodesPause is how often a stream tells of the nodes, and so how soon silence is noticed.
	nodesPause = 500 * time.Millisecond
	// logPause bounds how often a stream tells of the log.
	logPause = 100 * time.Millisecond
	// askTimeout bounds a question to another node. One that is paused never answers.
	askTimeout = 400 * time.Millisecond
	// rowsShown is how many rows of the log a stream tells of.
	rowsShown = 40
)

// serveEvents is the stream that a page lives on: server-sent events of two kinds. "nodes"
// has the state of all nodes, each told by that node itself; "log" has the newest rows as this
// node has them.
func (a *application) serveEvents(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	out := http.NewResponseController(w)
	send := func(kind string, data []byte) bool {
		_, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", kind, data)
		return err == nil && out.Flush() == nil
	}
	ticker := time.NewTicker(nodesPause)
	defer ticker.Stop()
	var sent []byte
	for nodes := true; ; {
		applied := a.nextApply()
		rows, err := a.last(r.Context(), rowsShown)
		if err != nil {
			slog.Debug("the log could not be read", "err", err) // there is no table yet, or it was not patient enough
		}
		if log := encode(rows); err == nil && !bytes.Equal(log, sent) {
			if !send("log", log) {
				return
			}
			sent = log
		}
		if nodes && !send("nodes", encode(a.overview(r.Context()))) {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-ticker.C:
			nodes = true
		case <-applied:
			nodes = false
			select {
			case <-r.Context().Done():
				return
			case <-time.After(logPause):
			}
		}
	}
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // a type of ours that JSON cannot hold
	}
	return b
}

// overview is the state of all nodes.
type overview struct {
	From  string `json:"from"` // who tells
	Run   int64  `json:"run"`  // another one after the demo was stopped and started
	Nodes []view `json:"nodes"`
}

// view is what the supervisor knows of a node, and what the node says of itself, if it
// answers.
type view struct {
	facts
	Status *nodeStatus `json:"status"`
}

// overview asks through the supervisor's port, as monitoring has a network of its own: what
// cuts nodes off from one another does not touch it.
func (a *application) overview(ctx context.Context) overview {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	o := overview{From: a.flags.ID, Run: a.flags.Run}
	var known []facts
	views := make([]view, len(a.flags.Nodes))
	var wg sync.WaitGroup
	wg.Go(func() { _ = ask(ctx, http.MethodGet, a.flags.Page+"/facts", a.flags.Token, nil, &known) })
	for i, id := range a.flags.Nodes {
		views[i].ID = id
		if id == a.flags.ID {
			s := a.status(ctx)
			views[i].Status = &s
			continue
		}
		wg.Go(func() {
			s := nodeStatus{}
			if ask(ctx, http.MethodGet, a.flags.Page+"/node/"+id+"/status", a.flags.Token, nil, &s) == nil {
				views[i].Status = &s
			}
		})
	}
	wg.Wait()
	for i := range views {
		for _, f := range known {
			if f.ID == views[i].ID {
				views[i].facts = f
			}
		}
	}
	o.Nodes = views
	return o
}
