package colmena

import (
	"context"
	"reflect"

	"github.com/mentasystems/colmena/internal/requestid"
	"github.com/mentasystems/colmena/internal/wire"
)

// FailRegistration has the request for a number to write under end in an unknown
// outcome for cause.
func (n *Node) FailRegistration(cause error) {
	n.requests = requestid.New(func(context.Context) (uint64, error) {
		return 0, outcomeUnknown(cause, "write: it is not known")
	})
}

// QueryAt has a node, whether it leads or not, run a query for this one, and walks over
// the rows.
func (n *Node) QueryAt(ctx context.Context, node, sql string) (rows int, err error) {
	r, err := n.readThere(ctx, node, DefaultDatabase, readMode{level: Weak}, sql, wire.NewArgs(0).Args(), wire.PreState{})
	if err != nil {
		return 0, err
	}
	defer r.Close()
	for {
		ok, err := r.Next()
		if !ok || err != nil {
			return rows, err
		}
		rows++
	}
}

// BrokenResult is the error of a result that another node ended with an error.
func BrokenResult(code wire.ErrorCode) error {
	return brokenResult("other", &wire.Error{Code: code, Msg: "over there"})
}

// FutureEndsWithRaft reports whether what waits for an entry is told of raft's end.
func (n *Node) FutureEndsWithRaft() bool {
	f := n.raft.Barrier(0)
	n.endWithRaft(f)
	if err := f.Error(); err != nil {
		return false
	}
	v := reflect.ValueOf(f).Elem().FieldByName("ShutdownCh")
	return v.IsValid() && v.Interface() == any(n.raftEnded)
}
