package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/mentasystems/colmena/internal/wire"
)

// TestMessagesOfAnAbsentHandler: what arrives while the handler is away is shown to
// Ahead, and what that leaves is received afterwards, in order; a handler that receives
// sees everything itself.
func TestMessagesOfAnAbsentHandler(t *testing.T) {
	back := make(chan struct{})
	shown := make(chan string, 1)
	w := newWorld(t, ServerConfig{}, map[string]Handler{
		"away": func(ctx context.Context, _ wire.Hello, st *Stream) error {
			st.Ahead(func(b []byte) bool {
				if string(b) != "now" {
					return false
				}
				shown <- string(b)
				return true
			})
			for range 3 {
				m, err := st.Recv()
				if err != nil {
					return err
				}
				if err := st.Send(m); err != nil {
					return err
				}
				if string(m) == "go" {
					<-back
				}
			}
			return nil
		},
	})
	st, err := w.client.Open(within(t, 10*time.Second), "n", "away")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	exchange := func(m, want string) {
		t.Helper()
		if m != "" {
			if err := st.Send([]byte(m)); err != nil {
				t.Fatal(err)
			}
		}
		if b, err := st.Recv(); err != nil || string(b) != want {
			t.Fatalf("got %q %v, want %q", b, err, want)
		}
	}
	exchange("now", "now") // it receives
	exchange("go", "go")
	for _, m := range []string{"later", "now"} {
		if err := st.Send([]byte(m)); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the message", shown)
	close(back)
	exchange("", "later")
	if _, err := st.Recv(); err != io.EOF {
		t.Errorf("end: %v", err)
	}
}

// TestHandlerThatComesAndGoes is away for about as long as it takes until somebody reads
// in its place.
func TestHandlerThatComesAndGoes(t *testing.T) {
	const n = 200
	w := newWorld(t, ServerConfig{}, map[string]Handler{
		"restless": func(ctx context.Context, _ wire.Hello, st *Stream) error {
			for i := range n {
				m, err := st.Recv()
				if err != nil || string(m) != fmt.Sprint(i) {
					return fmt.Errorf("message %d: %q %w", i, m, err)
				}
				away := time.NewTimer(time.Duration(i%5) * awayMax / 2)
				select {
				case <-away.C:
				case <-ctx.Done():
					return errors.New("the caller is still there")
				}
				if i%2 == 0 {
					if err := st.Send(nil); err != nil {
						return err
					}
				}
			}
			return nil
		},
	})
	st, err := w.client.Open(within(t, 20*time.Second), "n", "restless")
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	for i := range n {
		if err := st.Send(fmt.Append(nil, i)); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if _, err := st.Recv(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := st.Recv(); err != io.EOF {
		t.Errorf("end: %v", err)
	}
}

// TestReadingAheadEnds: a handler that is back reads itself again, from the second frame on.
func TestReadingAheadEnds(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	r := newReader(near, wire.MaxFrameBytes, func(f func()) bool { go f(); return true }, func() {})
	for i := range 3 {
		r.leave()
		eventually(t, "somebody reads ahead", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.ahead != nil
		})
		got := make(chan string, 1)
		go func() {
			f, err := r.next(t.Context(), nil)
			got <- fmt.Sprintf("%s %v", f.body, err)
		}()
		eventually(t, "the handler waits", func() bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.inNext
		})
		m := fmt.Append(nil, i)
		if _, err := far.Write(append(appendHead(nil, frameData, len(m)), m...)); err != nil {
			t.Fatal(err)
		}
		if m := waitFor(t, "the frame", got); m != fmt.Sprintf("%d %v", i, nil) {
			t.Errorf("got %s", m)
		}
		r.mu.Lock()
		ahead := r.ahead
		r.mu.Unlock()
		if ahead != nil {
			t.Error("somebody still reads ahead")
		}
	}
	near.Close()
	r.drain()
}
