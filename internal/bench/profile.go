package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// profile begins to take CPU profiles of the processes of a server that give
// them, into files whose names begin with prefix. The function that it returns
// waits for them.
func (s *server) profile(during time.Duration, prefix string) (wait func() error) {
	var (
		mu     sync.Mutex
		errs   []error
		taking sync.WaitGroup
	)
	sockets, err := filepath.Glob(filepath.Join(s.profiles, "*.pprof"))
	errs = append(errs, err)
	for _, socket := range sockets {
		taking.Go(func() {
			err := takeProfile(socket, during, prefix+"_"+filepath.Base(socket))
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		})
	}
	return func() error {
		taking.Wait()
		return errors.Join(errs...)
	}
}

func takeProfile(socket string, during time.Duration, file string) error {
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	seconds := max(1, during.Round(time.Second).Seconds())
	response, err := client.Get(fmt.Sprintf("http://server/debug/pprof/profile?seconds=%.0f", seconds))
	if err != nil {
		return err
	}
	defer response.Body.Close()
	profile, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", socket, response.Status, profile)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(file, profile, 0o644)
}
