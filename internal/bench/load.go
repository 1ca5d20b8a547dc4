package main

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A load is what clients do in a run.
type load struct {
	protocol   string // "lmtp", on a unix socket, or "smtp", over TCP
	size       int    // octets of a message
	sessions   int    // at the same time
	recipients int    // of a message
	reconnect  bool   // for each message
	together   bool   // all sessions end their first message at the same moment
}

// A result is what came of a run.
type result struct {
	messages int
	took     time.Duration
	p50, p99 time.Duration
}

// run sends messages for as long as it is told, at least one in each session.
// What is under way then is finished, and counts. note is called before the
// first message, when all sessions stand, and after the last answer.
//
// An answer that is not the wanted one is an error, and so is one too many.
func (l load) run(to target, during time.Duration, note func() error) (result, error) {
	clients := make([]client, l.sessions)
	defer func() {
		for i := range clients {
			clients[i].close()
		}
	}()
	tx := newTransaction(l.protocol, l.recipients, l.size)
	var arrived sync.WaitGroup
	arrived.Add(l.sessions)
	for i := range clients {
		clients[i] = client{load: l, target: to, tx: tx, arrive: sync.OnceFunc(arrived.Done), meet: arrived.Wait}
		if l.reconnect {
			continue
		}
		if err := clients[i].connect(); err != nil {
			return result{}, err
		}
	}
	if err := note(); err != nil {
		return result{}, err
	}
	var all sync.WaitGroup
	began := time.Now()
	for i := range clients {
		all.Go(func() { clients[i].sendUntil(began.Add(during)) })
	}
	all.Wait()
	took := time.Since(began)
	if err := note(); err != nil {
		return result{}, err
	}
	for i := range clients {
		clients[i].quit()
	}
	return summarize(clients, took)
}

func summarize(clients []client, took time.Duration) (result, error) {
	var latencies []time.Duration
	var errs []error
	for i := range clients {
		latencies = append(latencies, clients[i].latencies...)
		if err := clients[i].err; err != nil {
			errs = append(errs, fmt.Errorf("session %d, message %d: %w", i, len(clients[i].latencies), err))
		}
	}
	if len(errs) > 0 {
		return result{}, errors.Join(errs[:min(len(errs), 5)]...)
	}
	slices.Sort(latencies)
	n := len(latencies)
	return result{messages: n, took: took, p50: latencies[n/2], p99: latencies[n*99/100]}, nil
}

// A client sends one message after the other.
type client struct {
	load
	target
	tx        *transaction
	session   *session
	latencies []time.Duration
	err       error

	arrive, meet func() // before the end of a message, if it is to end together
}

func (c *client) connect() (err error) {
	c.session, err = c.open()
	return err
}

// quit ends a session that is still there.
func (c *client) quit() {
	if c.err == nil && !c.reconnect {
		c.err = c.session.quit()
	}
}

func (c *client) close() {
	if c.session != nil {
		c.session.conn.Close()
	}
}

func (c *client) sendUntil(end time.Time) {
	defer c.arrive()
	for now := time.Now(); len(c.latencies) == 0 || now.Before(end); {
		if c.err = c.send(); c.err != nil {
			return
		}
		began := now
		now = time.Now()
		c.latencies = append(c.latencies, now.Sub(began))
	}
}

func (c *client) send() error {
	if c.reconnect {
		if err := c.connect(); err != nil {
			return err
		}
	}
	if err := c.session.say(c.tx.envelope, c.tx.begun...); err != nil {
		return err
	}
	rest := c.tx.message
	if c.together {
		dot := len(rest) - len(".\r\n")
		if err := c.session.say(rest[:dot]); err != nil {
			return err
		}
		c.arrive()
		c.meet()
		rest = rest[dot:]
	}
	if err := c.session.say(rest, c.tx.ended...); err != nil {
		return err
	}
	if c.reconnect {
		return c.session.quit()
	}
	return nil
}
