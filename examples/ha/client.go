package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	// clientPatience is how long a client waits for an answer before it takes the outcome of
	// a write for unknown. It is longer than a node's own writeTimeout.
	clientPatience = writeTimeout + time.Second
	// clientRetries is for how long it sends a write again that was not applied.
	clientRetries = 30 * time.Second
	// clientOwing is after how long a node that owes an answer is sent nothing more.
	clientOwing = 300 * time.Millisecond
	// clientRest is for how long a node is left alone that did not take a write.
	clientRest = time.Second
	// clientsMax bounds the writes under way.
	clientsMax = 256
	// clientPause is the mean time between two writes, which do not wait for each other: so
	// that what is measured are outages, not the writers' own pauses.
	clientPause = 25 * time.Millisecond
)

// textOf differs from write to write, so that none can have the text of another unnoticed.
func textOf(id string) string { return "written without a page, as " + id }

// client writes to the log as the page does: over HTTP, each write through a node that it
// draws.
type client struct {
	nodes  []*process
	token  string
	name   string
	record *record

	mu    sync.Mutex
	owing map[string]int       // answers that a node owes for longer than clientOwing
	rest  map[string]time.Time // until when a node is left alone
}

func newClient(s *supervisor, name string) *client {
	return &client{nodes: s.nodes, token: s.token, name: name, record: newRecord(), owing: map[string]int{}, rest: map[string]time.Time{}}
}

// run writes until ctx ends, sometimes several at once, and returns when all are decided.
func (c *client) run(ctx context.Context) {
	var wg sync.WaitGroup
	room := make(chan struct{}, clientsMax)
	for n := 1; ctx.Err() == nil; {
		burst := 1
		if rand.IntN(4) == 0 {
			burst = 4
		}
		for range burst {
			id := fmt.Sprintf("%s-%d", c.name, n)
			n++
			room <- struct{}{}
			wg.Go(func() {
				defer func() { <-room }()
				c.write(id)
			})
		}
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(2 * clientPause)):
		}
	}
	wg.Wait()
}

// write sends one event until it is acknowledged, or its outcome is unknown, or it was not
// applied for too long.
func (c *client) write(id string) {
	began := time.Now()
	var not string
	for {
		p := c.choose(not)
		answer, err := c.attempt(p, id, began)
		switch {
		case err != nil, answer.Outcome == unknown:
			c.record.add(id, told{outcome: unknown})
			return
		case answer.Outcome == written:
			c.record.add(id, told{written, line{answer.Seq, id, textOf(id), p.flags.ID, began.UnixMilli()}})
			return
		case time.Since(began) > clientRetries:
			c.record.add(id, told{outcome: notApplied})
			return
		}
		not = p.flags.ID
		c.mu.Lock()
		c.rest[not] = time.Now().Add(clientRest)
		c.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
}

// choose draws a node, if possible one of which nothing bad is known.
func (c *client) choose(not string) *process {
	c.mu.Lock()
	defer c.mu.Unlock()
	var good, any []*process
	for _, p := range c.nodes {
		id := p.flags.ID
		if id == not {
			continue
		}
		any = append(any, p)
		if c.owing[id] == 0 && time.Now().After(c.rest[id]) {
			good = append(good, p)
		}
	}
	if len(good) > 0 {
		any = good
	}
	return any[rand.IntN(len(any))]
}

// attempt sends an event to a node once. An error means that its outcome is unknown.
func (c *client) attempt(p *process, id string, began time.Time) (a writeAnswer, err error) {
	address := p.address()
	if address == "" {
		return writeAnswer{Outcome: notApplied}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), clientPatience)
	defer cancel()
	until, _ := ctx.Deadline()
	late := false // guarded by c.mu
	owes := time.AfterFunc(clientOwing, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.owing[p.flags.ID]++
		late = true
	})
	defer func() {
		owes.Stop()
		c.mu.Lock()
		defer c.mu.Unlock()
		if late {
			c.owing[p.flags.ID]--
		}
	}()
	body, err := json.Marshal(event{ID: id, Text: textOf(id), Sent: began.UnixMilli(), Until: until.UnixMilli()})
	if err != nil {
		return a, err
	}
	err = ask(ctx, http.MethodPost, "http://"+address+"/write", c.token, body, &a)
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Op == "dial" {
		return writeAnswer{Outcome: notApplied}, nil
	}
	return a, err
}

// ask sends a request to a node and decodes its answer. An answer to a write is one
// whatever its status.
func ask(ctx context.Context, method, url, token string, body []byte, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set(tokenHeader, token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if method == http.MethodGet && resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", url, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return fmt.Errorf("%s: %s: %w", url, resp.Status, err)
	}
	return nil
}
