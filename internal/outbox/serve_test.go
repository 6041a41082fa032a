package outbox

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/mentasystems/colmena/internal/engine"
	"github.com/mentasystems/colmena/internal/wire"
)

// held is a database that keeps units until the test decides them.
type held struct{ units []*engine.Unit }

func (h *held) Submit(units ...*engine.Unit) { h.units = append(h.units, units...) }

func (h *held) decide(i int, id int64, err error) {
	u := h.units[i]
	u.Result.Result.LastInsertID, u.Err = id, err
	u.Done(u)
}

// serve runs the leader's end in a bubble.
func serve(t *testing.T, f func(t *testing.T, st *end, db *held)) error {
	var err error
	synctest.Test(t, func(t *testing.T) {
		here, there := link()
		db := &held{}
		l := Leader{ToWire: toWire, Database: func(_ context.Context, name string) (Database, error) {
			if name != "a" {
				return nil, &wire.Error{Code: wire.ErrRefused, Msg: name}
			}
			return db, nil
		}}
		done := make(chan struct{})
		go func() {
			defer close(done)
			err = l.Serve(t.Context(), there)
		}()
		f(t, here, db)
		here.Close()
		<-done
	})
	return err
}

func request(tag uint64, db string, units ...wire.Unit) []byte {
	return appendRequest(nil, tag, &wire.WriteRequest{DB: db, Units: units})
}

// results takes the answers that are there.
func results(t *testing.T, st *end) (tags []uint64, res []wire.UnitResult) {
	t.Helper()
	synctest.Wait()
	for len(st.in) > 0 {
		more, r, err := readResponse(<-st.in)
		if err != nil {
			t.Fatal(err)
		}
		tags, res = append(tags, more...), append(res, r...)
	}
	return tags, res
}

func TestUnitsAreAnsweredAsTheyAreDecided(t *testing.T) {
	err := serve(t, func(t *testing.T, st *end, db *held) {
		_ = st.Send(request(7, "a", unit("x"), unit("y"), unit("z")))
		if tags, _ := results(t, st); len(tags) != 0 || len(db.units) != 3 || db.units[1].Req.Statements[0].SQL != "y" {
			t.Fatalf("%d units, answered are %v", len(db.units), tags)
		}
		db.decide(1, 11, nil)
		if tags, res := results(t, st); len(tags) != 1 || tags[0] != 8 || res[0].Result.LastInsertID != 11 {
			t.Errorf("answered are %v", tags)
		}
		db.decide(2, 12, nil)
		db.decide(0, 0, errors.New("no"))
		if tags, res := results(t, st); len(tags) != 2 || tags[0] != 9 || tags[1] != 7 || res[1].Err == nil || res[1].Err.Msg != "no" {
			t.Errorf("answered are %v", tags)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

func TestUnitsOfADatabaseThatIsRefused(t *testing.T) {
	_ = serve(t, func(t *testing.T, st *end, db *held) {
		_ = st.Send(request(0, "b", unit("x"), unit("y")))
		tags, res := results(t, st)
		if len(tags) != 2 || res[0].Err == nil || res[1].Err == nil || res[1].Err.Code != wire.ErrRefused {
			t.Errorf("%v, %v", tags, res)
		}
	})
}

// A unit that was not taken up is answered when it is withdrawn; another one by its
// database, once.
func TestWithdrawnUnit(t *testing.T) {
	_ = serve(t, func(t *testing.T, st *end, db *held) {
		_ = st.Send(request(0, "a", unit("x"), unit("y")))
		_ = st.Send(request(1, ""))
		_ = st.Send(request(1, "")) // told twice
		_ = st.Send(request(5, "")) // unknown, or answered already
		tags, res := results(t, st)
		if len(tags) != 1 || tags[0] != 1 || res[0].Err == nil || res[0].Err.Code != wire.ErrCanceled {
			t.Errorf("%v, %v", tags, res)
		}
		db.decide(0, 1, nil)
		if tags, _ := results(t, st); len(tags) != 1 || tags[0] != 0 {
			t.Errorf("%v", tags)
		}
	})
}

func TestNonsenseEndsServing(t *testing.T) {
	for _, b := range [][]byte{nil, {0x80}, {0, 1, 2}} {
		if err := serve(t, func(t *testing.T, st *end, _ *held) {
			_ = st.Send(b)
			synctest.Wait()
		}); err == nil {
			t.Errorf("%x is no request", b)
		}
	}
}

// Results that are large go in several frames.
func TestAnswersAreSplit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAnswers(toWire)
		for tag := range uint64(3) {
			a.add(tag, &engine.Unit{Err: &wire.Error{Code: wire.ErrApp, Msg: string(make([]byte, maxFrameBytes*2/3))}})
		}
		here, there := link()
		ctx, cancel := context.WithCancel(t.Context())
		go a.run(ctx, there)
		synctest.Wait()
		if n := len(here.in); n != 2 {
			t.Errorf("%d frames", n)
		}
		if tags, _ := results(t, here); len(tags) != 3 {
			t.Errorf("%v", tags)
		}
		cancel()
	})
}

func FuzzFrames(f *testing.F) {
	f.Add(request(3, "a", unit("INSERT INTO t VALUES(1)")))
	f.Add(request(9, ""))
	f.Add(appendResponse(nil, []uint64{1, 300}, make([]wire.UnitResult, 2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var req wire.WriteRequest
		if tag, err := readRequest(bytes.Clone(b), &req); err == nil {
			again := appendRequest(nil, tag, &req)
			var back wire.WriteRequest
			if t2, err := readRequest(again, &back); err != nil || t2 != tag || len(back.Units) != len(req.Units) {
				t.Errorf("%x comes back as %x: %v", b, again, err)
			}
		}
		if tags, res, err := readResponse(b); err == nil && (len(tags) != len(res) || len(tags) > maxFrameUnits) {
			t.Errorf("%d tags, %d results", len(tags), len(res))
		}
	})
}
