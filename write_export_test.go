package colmena

import (
	"context"

	"github.com/mentasystems/colmena/internal/wire"
)

// QueryAt has a node, whether it leads or not, run a query for this one, and walks over
// the rows.
func (n *Node) QueryAt(ctx context.Context, node, sql string) (rows int, err error) {
	r, err := n.reads.There(ctx, node, DefaultDatabase, readMode{level: Weak}.asks(), sql, wire.NewArgs(0).Args(), wire.PreState{})
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
