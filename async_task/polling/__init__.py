"""Operations that go on at a provider for hours: started, polled until they end, fetched and handled, each once."""
