package plugins

var testPrograms = map[string]func(){}
